import pytest
import torch
from torch import nn

from supernet.recipe import precision_on
from supernet.stepping import averaged


def test_averages_follow_faster_at_first_and_what_is_counted_is_copied() -> None:
    module = nn.BatchNorm1d(1)
    average = averaged(module, 0.5)
    seen = []
    for value in (1, 2, 3, 4, 5):
        with torch.no_grad():
            module.weight.fill_(value)
            module.running_mean.fill_(value)
            module.num_batches_tracked.fill_(value)
        average.update_parameters(module)
        seen.append(average.module.weight.item())
        assert average.module.running_mean.item() == seen[-1]
        assert average.module.num_batches_tracked.item() == value
    # The first is copied; then 1 - (1 + n) / (10 + n) of the way, and never less than 1 - 0.5.
    wanted = [1.0]
    for n, value in enumerate((2, 3, 4, 5), start=1):
        wanted.append(wanted[-1] + (1 - min(0.5, (1 + n) / (10 + n))) * (value - wanted[-1]))
    assert seen == pytest.approx(wanted)


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp16")])
def test_on_a_gpu_auto_is_bf16_where_it_is_not_emulated(
    monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool, precision: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or has_bf16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision_on(torch.device("cuda", 0), "auto") == precision
    assert precision_on(torch.device("cuda", 0), "fp32") == "fp32"
