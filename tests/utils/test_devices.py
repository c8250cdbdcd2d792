import pytest
import torch

from clipadapter.errors import InputError
from clipadapter.utils.devices import check_device, full_float32


@pytest.fixture
def cuda(monkeypatch):
    """A build of torch with CUDA and a machine with one GPU, as far as names are checked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def empty(*shape, device):
        if device == "cuda:3":
            raise RuntimeError("CUDA error: invalid device ordinal\nCUDA kernel errors might be reported later")
        return torch.zeros(*shape)

    monkeypatch.setattr(torch, "empty", empty)


def test_the_gpu_of_a_machine_is_found(cuda):
    assert [check_device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda", "cuda", "cuda:0", "cpu"]


def test_a_gpu_that_a_machine_lacks_is_refused_with_the_number_that_it_has(cuda):
    with pytest.raises(InputError, match=r"'cuda:3' can.t .*invalid device ordinal\); it has 1 of cuda"):
        check_device("cuda:3")


def test_cuda_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = "was installed without CUDA, or finds no GPU or no driver"
    with pytest.raises(InputError, match=f"'cuda' can't be used on this machine: torch .*{reason}"):
        check_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_built(), reason="this build of torch has mps")
def test_a_device_that_torch_was_built_without_is_refused_in_one_sentence():
    with pytest.raises(InputError, match=r"\(torch .* has no mps\): give cpu or auto$") as error:
        check_device("mps")
    assert len(str(error.value)) < 120  # torch's own text lists all its backends


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", None, 1.5])
def test_a_name_of_no_device_is_refused(device):
    with pytest.raises(InputError, match="give cpu, cuda, mps, xpu or auto"):
        check_device(device)


def test_auto_is_the_cpu_without_a_gpu(monkeypatch):
    for kind in (torch.cuda, torch.mps, torch.xpu):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    assert check_device("auto") == "cpu"


def new_settings():
    """Owners of torch's new settings of products, each with the attribute ``fp32_precision``."""
    cudnn = torch.backends.cudnn
    return [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, cudnn.conv, cudnn.rnn]


def read_new_settings():
    return [each.fp32_precision for each in new_settings()]


def read_all_settings():
    older = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
    return [torch.get_float32_matmul_precision(), *older, *read_new_settings()]


@pytest.fixture
def precision_restored():
    precision, before = torch.get_float32_matmul_precision(), read_new_settings()
    yield
    torch.set_float32_matmul_precision(precision)
    for each, value in zip(new_settings(), before, strict=True):
        each.fp32_precision = value


@pytest.mark.usefixtures("precision_restored")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_older_and_new_settings_of_tf32_can_be_read_while_it_is_off(precision):
    torch.set_float32_matmul_precision(precision)
    before = read_all_settings()
    with full_float32("cuda"):
        assert read_all_settings() == ["highest", False, False, *["ieee"] * 4]
    assert read_all_settings() == before


@pytest.mark.usefixtures("precision_restored")
def test_tf32_is_off_while_anyone_computes_for_a_program_that_uses_the_new_settings_only():
    for each, value in zip(new_settings(), before := ["tf32", "bf16", "ieee", "tf32"], strict=True):
        each.fp32_precision = value
    first, second = full_float32("cuda"), full_float32("cuda:1")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert read_new_settings() == ["ieee"] * 4
    second.__exit__(None, None, None)
    assert read_new_settings() == before
    with full_float32("cpu"):
        assert read_new_settings() == before
