"""The server keeps what its own OpenAPI document says."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from clipadapter.serve import Limits, create_app

from .colours import Colours, OpenedModels

BUSY = [408, 413, 504]
"""What a small timeout or a large request get, though the document allows both."""
CHECKS = {
    "positive_data_acceptance": {"expected-statuses": ["2xx", 401, 404, *BUSY]},
    "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 415, 422, *BUSY]},
    "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 504]},
}


def ask_as_documented(operation, mode, path):
    """Statuses of requests that are as an operation's document says, or in one thing not."""
    found = []

    @settings(
        max_examples=5,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
        database=None,
    )
    @given(operation.as_strategy(mode))
    def ask(case):
        case.path_parameters = {name: value for name, value in path.items() if f"{{{name}}}" in operation.path}
        found.append(case.call_and_validate().status_code)

    try:
        ask()
    except Unsatisfiable:  # nothing can be wrong with a request that has no parts
        assert mode.name == "NEGATIVE"
    return found


@pytest.mark.slow
def test_answers_are_as_documented(files):
    schemathesis = pytest.importorskip("schemathesis")  # here, since it takes seconds

    models = OpenedModels([str(files / "colours.onnx")], Limits(max_pictures=4), Colours())
    config = schemathesis.Config.from_dict({"checks": CHECKS})
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(models), config=config)
    asked, path = [], {"name": "colours"}
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            asked += ask_as_documented(operation, mode, path)
    assert len(asked) > 20 and {200, 422} <= set(asked) and 500 not in asked
    models.close()
