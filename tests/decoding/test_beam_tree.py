"""Trees of candidates and the selection of beams, worked by hand."""

import math

import pytest
import torch

from worldmtp.decoding.beam import Beams, BeamTree, Candidates, candidate_nodes, path_log_probs, select_beams

EOS = 1
INF = math.inf


def test_a_tree_by_hand():
    #  0        1
    #  2  3     4  5
    tree = BeamTree((2, 2))
    assert (tree.level_sizes, tree.num_nodes, tree.num_inner) == ((2, 4), 6, 2)
    assert tree.depths.tolist() == [1, 1, 2, 2, 2, 2]
    assert tree.ancestors.long().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 1],
    ]
    assert tree.paths.tolist() == [[0, 0], [1, 1], [0, 2], [0, 3], [1, 4], [1, 5]]


def test_widths_of_one_are_a_chain_and_a_single_width_has_no_inner_nodes():
    chain = BeamTree((1, 1, 1))
    assert chain.paths.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    flat = BeamTree((3,))
    assert (flat.num_inner, flat.paths.tolist()) == (0, [[0], [1], [2]])
    # 0 1 | 2 3 4 after 0, 5 6 7 after 1 | one after each
    assert BeamTree((2, 3, 1)).paths[8:].tolist() == [
        [0, 2, 8],
        [0, 3, 9],
        [0, 4, 10],
        [1, 5, 11],
        [1, 6, 12],
        [1, 7, 13],
    ]


def test_path_log_probs_by_hand():
    tree = BeamTree((2, 2))
    tokens = torch.tensor([[2, 0, 1, 2, 0, 1]])
    first = torch.tensor([[[0.5, 0.2, 0.3]]]).log()
    second = torch.tensor([[[0.1, 0.6, 0.3], [0.25, 0.5, 0.25]]]).log()
    # 2: 0.3; 0: 0.5; 2 1: 0.3 x 0.6; 2 2: 0.3 x 0.3; 0 0: 0.5 x 0.25; 0 1: 0.5 x 0.5
    expected = torch.tensor([[0.3, 0.5, 0.18, 0.09, 0.125, 0.25]], dtype=torch.float64)
    found = path_log_probs(tree, tokens, [first, second])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.exp(), expected, atol=1e-7, rtol=0)


def test_candidates_end_at_their_first_end_or_at_the_deepest_level():
    tree = BeamTree((2, 2))
    tokens = torch.tensor(
        [
            [5, 6, 2, 3, 2, 3],  # none ends
            [EOS, 6, 2, EOS, EOS, 3],  # the first ends at once; of the second's children one does
        ]
    )
    is_candidate, has_ended = candidate_nodes(tree, tokens, (EOS,))
    assert is_candidate.long().tolist() == [[0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1]]
    assert has_ended.long().tolist() == [[0] * 6, [1, 0, 0, 0, 1, 0]]
    is_candidate, has_ended = candidate_nodes(tree, tokens, ())
    assert is_candidate.long().tolist() == [[0, 0, 1, 1, 1, 1]] * 2
    assert not has_ended.any()
    is_candidate, has_ended = candidate_nodes(tree, tokens, (EOS, 6))
    assert is_candidate.long().tolist() == [[0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]


def beams_of(tokens, lengths, scores, is_live) -> Beams:
    return Beams(
        torch.tensor(tokens), torch.tensor(lengths), torch.tensor(scores, dtype=torch.float64), torch.tensor(is_live)
    )


def test_ended_texts_compete_and_survivors_are_traced_to_row_and_node():
    """Two prompts of three places. Rows: 0 and 1 are prompt 0's places 0 and 2, row 2 is prompt 1's place 0."""
    beams = beams_of(
        [[[4, 4, 0, 0], [5, EOS, 0, 0], [6, 6, 0, 0]], [[7, 7, 0, 0], [0] * 4, [0] * 4]],
        [[2, 2, 2], [2, 0, 0]],
        [[-1.0, -2.0, -3.0], [-1.0, -INF, -INF]],
        [[True, False, True], [True, False, False]],
    )
    found = Candidates(
        BeamTree((2,)),
        tokens=torch.tensor([[2, 3], [2, EOS], [EOS, 3]]),
        log_probs=torch.tensor([[-0.5, -3.0], [-0.25, -0.5], [-0.75, -4.0]], dtype=torch.float64),
    )
    selection = select_beams(beams, found, (EOS,), is_last=False)
    # Prompt 0: -1.5 (row 0, token 2), -2 (ended before), -3.25 (row 1, token 2), then -3.5 and -4 fall off.
    # Prompt 1: -1.75 (row 2, ends), -5 (row 2, token 3), nothing; its best has ended, so it is done.
    after = selection.beams
    assert after.scores.tolist() == [[-1.5, -2.0, -3.25], [-1.75, -5.0, -INF]]
    assert after.tokens[0].tolist() == [[4, 4, 2, 0], [5, EOS, 0, 0], [6, 6, 2, 0]]
    assert after.tokens[1, :2].tolist() == [[7, 7, EOS, 0], [7, 7, 3, 0]]
    assert after.lengths[0].tolist() == [3, 2, 3]
    assert after.lengths[1, :2].tolist() == [3, 3]
    assert after.is_live.tolist() == [[True, False, True], [False, False, False]]
    assert (selection.rows.tolist(), selection.nodes.tolist()) == ([0, 1], [0, 0])


def test_in_the_last_round_nothing_goes_on():
    beams = Beams.start(1, 2, 1, torch.device("cpu"))
    found = Candidates(BeamTree((2,)), torch.tensor([[4, 3]]), torch.tensor([[-2.0, -1.0]], dtype=torch.float64))
    selection = select_beams(beams, found, (), is_last=True)
    assert selection.beams.tokens.tolist() == [[[3], [4]]]
    assert selection.beams.lengths.tolist() == [[1, 1]]
    assert not selection.beams.is_live.any()
    assert len(selection.rows) == 0


def test_a_text_that_ends_inside_a_block_is_cut_there():
    beams = beams_of([[[2, 0, 0]]], [[1]], [[-1.0]], [[True]])
    tokens = torch.tensor([[EOS, 3, 4, 5, 4, 5]])
    log_probs = torch.tensor([[-0.5, -0.6, -0.7, -0.8, -0.9, -1.0]], dtype=torch.float64)
    selection = select_beams(beams, Candidates(BeamTree((2, 2)), tokens, log_probs), (EOS,), is_last=False)
    assert selection.beams.tokens.tolist() == [[[2, EOS, 0]]]
    assert selection.beams.lengths.tolist() == [[2]]
    assert selection.beams.scores.tolist() == [[-1.5]]


def test_ties_go_to_the_first():
    beams = beams_of([[[2, 0], [3, EOS]]], [[1, 2]], [[-1.0, -2.0]], [[True, False]])
    log_probs = torch.tensor([[-1.0, -1.0, -1.0]], dtype=torch.float64)
    selection = select_beams(beams, Candidates(BeamTree((3,)), torch.tensor([[6, 4, 5]]), log_probs), (EOS,), False)
    assert selection.beams.tokens.tolist() == [[[2, 6], [2, 4]]]  # the ended text is of the second beam


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((), r"widths=\(\) must be counts of at least 1, one for each depth"),
        ((2, 0), r"widths=\(2, 0\) must be counts of at least 1"),
        (
            (7,) * 5,
            r"widths=\(7, 7, 7, 7, 7\) make 7 \+ 49 \+ 343 \+ 2401 \+ 16807 = 19607 nodes for each beam, and one "
            r"forward scores at most 4096; lower a width",
        ),
    ],
    ids=["none", "zero", "too_many"],
)
def test_wrong_widths(widths, message):
    with pytest.raises(ValueError, match=message):
        BeamTree(widths)
    assert BeamTree((4096,)).num_nodes == 4096
