"""Processes that are killed at chosen moments: their files can be read, and a resumed run ends with the same bytes.

benchmarks.durability kills more runs at random moments, and also interrupts them by SIGINT and SIGTERM.
"""

from __future__ import annotations

import random
import signal

import pytest

from benchmarks.durability.child import SAVING, Status
from benchmarks.durability.moments import Campaign, Ended
from fastmlp.training.checkpoints.file import files_of

pytestmark = [pytest.mark.full, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")]

RUN = (
    "--hidden 8 --backend numpy --epochs 6 --patience 0 --dropout 0.2 --per-class-every 2 --save-every 3 --checkpoint-seconds 0"
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("killed"), random.Random(0), {"run": RUN})


# Fractions of the calls that change files, of those that save a checkpoint or the result, or of the duration. The second and
# the third kill hit the resumed run.
@pytest.mark.parametrize(
    "moments",
    [
        [(0.45, "half", False), (0.1, "after", True), (0.35, "half", True)],
        [(0.06, "before", False), (0.95, "half", True)],
        [(0.6, "", False)],
    ],
)
def test_a_killed_run_ends_with_the_same_bytes(campaign: Campaign, moments: list[tuple[float, str, bool]]) -> None:
    run = campaign.new_folder()
    for fraction, part, saving in moments:
        row = campaign.kill_once(run, campaign.cache, "run", fraction, part, saving=saving)
        if row is None:
            assert not part, "the run ended before the call"
            break
        assert row["repeated"] <= 1, "more than one epoch is repeated"
        assert not saving or row["phase"] in SAVING
    campaign.finish(run, campaign.cache, "run", "kills")
    assert campaign.wrong == []
    assert len(files_of(run)) == 2


def test_a_run_that_does_not_end_as_it_should_is_detected(campaign: Campaign) -> None:
    campaign.check(
        Ended(1, Status("training", 0, 0), "Traceback (most recent call last): …", 0.1), 130, "SIGINT", ["a.json is torn"]
    )
    found, campaign.wrong = campaign.wrong, []
    assert [line.partition(";")[0] for line in found] == [
        "SIGINT: a.json is torn",
        "SIGINT: exit code 1 instead of 130",
        "SIGINT: traceback: 'Traceback (most recent call last): …'",
    ]


def test_a_changed_file_of_a_resumed_run_is_detected(campaign: Campaign) -> None:
    run = campaign.new_folder()
    assert campaign.kill_once(run, campaign.cache, "run", 0.7, "before") is not None
    (run / "models" / "epoch-0003.safetensors").write_bytes(b"")
    campaign.finish(run, campaign.cache, "run", "a kill")
    found, campaign.wrong = campaign.wrong, []
    assert any("epoch-0003.safetensors differs" in line for line in found)
    assert any("epoch-0003.safetensors: DataError" in line for line in found)
