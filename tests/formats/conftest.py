from ..runtime.conftest import write

__all__ = ["write"]
