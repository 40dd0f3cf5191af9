"""Data from which nothing can be learnt is refused, or said to be so where its rows are not known beforehand."""

import pytest
from datasets import Dataset, IterableDataset

UNLABELLED = {"input_ids": [2, 3, 4], "labels": [-100] * 3}
FIRST_ONLY = {"input_ids": [2, 3, 4], "labels": [2, -100, -100]}
LABELLED = {"input_ids": [2, 3, 4], "labels": [-100, 3, 4]}
LONG = {"input_ids": [*range(2, 13)], "labels": [-100] * 10 + [12]}
PREPARED = {"dataset_kwargs": None, "max_length": 10}


def data(*rows):
    return Dataset.from_list(list(rows))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([UNLABELLED] * 3, {}, r"of 3 examples left .* none has a label other than -100 within max_length=1024"),
        # The first token of a text is nobody's target.
        ([FIRST_ONLY] * 2, {}, "train_dataset has no token to learn: of 2 examples left"),
        # TRL drops rows without a label; the length limit is not the reason here.
        ([UNLABELLED] * 3, PREPARED, "of 0 examples left after TRL's preparation, none has a label .* Label the compl"),
        ([LONG] * 3, PREPARED, "of 0 examples left .* within max_length=10. .* or raise max_length if they lie beyond"),
        ([LONG] * 3, {"packing": True, **PREPARED}, "train_dataset has no token to learn"),
    ],
)
def test_training_data_without_a_target_is_refused(make_trainer, make_model, rows, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(make_model(), train_dataset=data(*rows), **options)


def test_one_target_in_any_row_is_enough(make_trainer, make_model):
    make_trainer(make_model(), train_dataset=data(UNLABELLED, FIRST_ONLY, LABELLED)).train()


@pytest.mark.parametrize("packing", [False, True])
def test_evaluation_sets_are_looked_at_too(make_trainer, make_model, packing):
    options = {"eval_packing": packing, **PREPARED}
    with pytest.raises(ValueError, match="eval_dataset has no token to learn: of"):
        make_trainer(make_model(), eval_dataset=data(LONG), **options)
    sets = {"good": data(LABELLED), "cut": data(LONG, LONG)}
    with pytest.raises(ValueError, match=r"eval_dataset\['cut'\] has no token to learn: of"):
        make_trainer(make_model(), eval_dataset=sets, **options)


def test_an_empty_set_of_several_is_refused_by_name(make_trainer, make_model):
    sets = {"good": data(LABELLED), "none": data(LABELLED).select([])}
    with pytest.raises(ValueError, match=r"eval_dataset\['none'\] is empty: got 0 examples, expected at least 1"):
        make_trainer(make_model(), eval_dataset=sets)


def test_a_stream_without_a_target_is_said_when_it_is_logged(make_trainer, make_model):
    stream = IterableDataset.from_generator(lambda: iter([UNLABELLED] * 64))
    trainer = make_trainer(make_model(), train_dataset=stream, max_steps=2, logging_steps=2)
    with pytest.warns(UserWarning, match="no token had a label in 2 micro-batch.* up to step 2: every label is -100"):
        trainer.train()


def test_a_set_given_to_evaluate_is_said_too(make_trainer, make_model):
    trainer = make_trainer(make_model())
    with pytest.warns(UserWarning, match="no token had a label in 1 micro-batch.* of eval_dataset"):
        trainer.evaluate(data(UNLABELLED))
