"""What a trainer's own log lets through while checkpoints follow one another within a second."""

import logging

import pytest
from transformers import trainer_utils
from transformers.utils import logging as transformers_logging

from worldmtp.training.warm_start import checkpoints_of_one_second


@pytest.fixture
def messages(monkeypatch):
    """What the module of transformers that sorts checkpoints says, each time anew."""
    told = []

    class Told(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())

    handler, logger = Told(), logging.getLogger("transformers.trainer_utils")
    monkeypatch.setattr(type(trainer_utils.logger), "warning_once", type(trainer_utils.logger).warning)
    logger.addHandler(handler)
    yield told
    logger.removeHandler(handler)


def checkpoints(directory):
    """Of the steps 9, 10 and 11 in one moment: by their names 10 would come first."""
    for step in (9, 10, 11):
        (directory / f"checkpoint-{step}").mkdir(parents=True)
    return directory


def test_a_fast_trainer_does_not_blame_the_file_system(tmp_path, messages):
    assert transformers_logging.get_verbosity() <= logging.WARNING
    trainer_utils.rotate_checkpoints(str(checkpoints(tmp_path / "a")), save_total_limit=2, use_mtime=True)
    assert len(messages) == 1  # what is kept out is what transformers says today
    with checkpoints_of_one_second():
        trainer_utils.rotate_checkpoints(str(checkpoints(tmp_path / "b")), save_total_limit=2, use_mtime=True)
        trainer_utils.logger.warning("a warning of something else")
    assert messages[1:] == ["a warning of something else"]
    for name in ("a", "b"):
        kept = sorted(path.name for path in (tmp_path / name).iterdir())
        assert kept == ["checkpoint-10", "checkpoint-11"]


def test_the_filter_is_gone_after_a_failure(tmp_path, messages):
    with pytest.raises(RuntimeError, match="out of memory"), checkpoints_of_one_second():
        raise RuntimeError("out of memory")
    trainer_utils.rotate_checkpoints(str(checkpoints(tmp_path)), save_total_limit=2, use_mtime=True)
    assert len(messages) == 1
