"""Translator: order, batches, and a model that is saved whole or not at all."""

import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.checkpoints import Progress, write_checkpoint
from annotated_transformer.decoding import beam_search, greedy_search
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.training import TrainingConfig, run_settings
from annotated_transformer.translator import (
    average_pretrained,
    average_weights,
    find_model,
    last_checkpoints,
    shipped_models,
)

LINES = [
    "A dog runs through the grass.",
    "Two men sit on a bench and talk.",
    "A child looks at a red balloon!",
    "Nobody is here.",
    "Ein Hund rennt durch das Gras.",
    "Zwei Männer sitzen auf einer Bank.",
]
FILES = ["config.json", "model.safetensors", "tokenizer.model"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(LINES, 300)


def make(tokenizer, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "max_length": 120}
    config = TransformerConfig(tokenizer.vocab_size, **{**sizes, **changes})
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)  # outputs that depend on the input
    return Translator(model, tokenizer)


def logits(translator):
    src = torch.tensor([[262, 270, 281, 2], [290, 2, 0, 0]])
    with torch.no_grad():
        return translator.model(src, torch.tensor([[1, 263], [1, 299]]))


# Translating


def test_order_is_kept_and_the_batch_changes_nothing(tokenizer):
    translator = make(tokenizer)
    lines = [" ".join(LINES[i % 6].split()[: 1 + i % 5]) for i in range(24)]
    alone = [translator.translate([line])[0] for line in lines]
    assert len(set(alone)) > 5
    for batch_size in (1, 3, 64):
        assert translator.translate(lines, batch_size) == alone
    assert translator.translate(iter(lines)) == alone


@pytest.fixture
def n_threads():
    """Four threads for torch, whatever the machine; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch_size, shares", [(4, [1] * 6), (12, [2, 2]), (24, [4])])
def test_groups_are_translated_side_by_side(
    tokenizer, n_threads, monkeypatch, batch_size, shares
):
    """Each by a thread of its own, which has its share of the cores."""
    translator = make(tokenizer, dropout=0.5)
    lines = [" ".join(LINES[i % 6].split()[: 1 + i % 5]) for i in range(24)]
    alone = [translator.n_best([line], 2, beam_size=3) for line in lines]
    texts = [[one.text for one in found] for (found,) in alone]
    translator.model.train()  # each group would lose its dropout, the first to end all
    seen = []

    def search(*given, real=beam_search, **more):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        assert not translator.model.training
        found = real(*given, **more)
        assert not translator.model.training
        return found

    monkeypatch.setattr("annotated_transformer.translator.beam_search", search)
    found = translator.n_best(lines, 2, batch_size, beam_size=3)
    assert [[one.text for one in some] for some in found] == texts
    assert [share for _, share in seen] == shares
    assert (len(shares) == 1) == (seen[0][0] == threading.get_ident())
    assert translator.model.training
    with ThreadPoolExecutor(1) as pool:  # whoever asks, in this thread or a new one
        assert pool.submit(torch.get_num_threads).result() == n_threads
    assert torch.get_num_threads() == n_threads


def test_an_error_in_one_group_is_that_error(tokenizer, n_threads, monkeypatch):
    translator = make(tokenizer)

    def search(model, src, *rest, real=greedy_search):
        if src.size(1) == longest:
            raise RuntimeError("out of memory")
        return real(model, src, *rest)

    longest = 1 + max(len(tokenizer.encode(line)) for line in LINES)
    monkeypatch.setattr("annotated_transformer.translator.greedy_search", search)
    with pytest.raises(RuntimeError, match="out of memory"):
        translator.translate(LINES, 1)
    assert torch.get_num_threads() == n_threads


def test_it_is_greedy_search_between_encode_and_decode(tokenizer):
    translator = make(tokenizer)
    for line in LINES:
        src = torch.tensor([[*tokenizer.encode(line), 2]])
        (ids,) = greedy_search(translator.model, src)
        assert translator.translate([line]) == [tokenizer.decode(ids)]


def test_empty_lines_stay_empty(tokenizer):
    translator = make(tokenizer)
    outputs = translator.translate(["", LINES[0], "  \t ", LINES[1], ""])
    assert [bool(text) for text in outputs] == [False, True, False, True, False]
    assert translator.translate([]) == [] and translator.translate([""]) == [""]


def test_one_line_in_is_one_line_out(tokenizer, monkeypatch):
    translator = make(tokenizer)
    monkeypatch.setattr(tokenizer, "decode", lambda ids: "a\nb\r\nc\u00a0d\r")
    assert translator.translate(LINES[:2]) == ["a b c\u00a0d "] * 2


def test_lists_iterators_files_and_paths(tokenizer, tmp_path):
    translator, path = make(tokenizer), tmp_path / "lines.en"
    lines = [*LINES[:3], "", "a\u2028b"]
    expected = translator.translate(lines)
    path.write_bytes("\r\n".join(lines).encode() + b"\n")
    with open(path, encoding="utf-8", newline="") as file:
        assert translator.translate(file) == expected
    assert translator.translate(path) == expected
    assert translator.translate(line for line in lines) == expected
    starts = ["Ein"] * 5
    listed = translator.n_best(lines, beam_size=2, prefixes=starts)
    assert translator.n_best(path, beam_size=2, prefixes=starts) == listed


def test_a_sentence_that_is_too_long_is_named_and_never_cut(tokenizer):
    fits, too_long = LINES[0], LINES[0] + "!"
    n = len(tokenizer.encode(fits))
    translator = make(tokenizer, max_length=n + 50)
    assert translator.translate([fits])[0]
    with pytest.raises(ValueError, match=f"line 3: {n + 1} tokens, more than the {n}"):
        translator.translate([fits, "", too_long, too_long])


def test_a_model_without_room_for_an_output_says_so(tokenizer):
    with pytest.raises(ValueError, match="line 1: the model's max_length leaves no"):
        make(tokenizer, max_length=50).translate(["a"])


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_sentences(tokenizer, batch_size):
    translator = make(tokenizer)
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        translator.translate(LINES, batch_size)
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        translator.n_best(LINES, 2, batch_size)
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        translator.score(LINES, LINES, batch_size)


def test_a_broken_model_does_not_pass_for_a_silent_one(tokenizer):
    translator = make(tokenizer)
    with torch.no_grad():
        translator.model.embedding.weight[5] = torch.nan
    for search in (
        lambda: translator.translate(LINES),
        lambda: translator.translate(LINES, beam_size=2),
        lambda: translator.sample(LINES),
    ):
        with pytest.raises(ValueError, match=r"not numbers \(NaN\)"):
            search()


def test_one_string_is_not_a_list_of_lines(tokenizer):
    with pytest.raises(TypeError, match="list of sentences"):
        make(tokenizer).translate("A dog runs.")


def test_model_and_tokenizer_must_belong_together(tokenizer):
    with pytest.raises(ValueError, match="vocab_size is 301 in the model and 300"):
        Translator(Transformer(TransformerConfig(301, 16, 1, 2)), tokenizer)
    with pytest.raises(ValueError, match="eos_id is 3 in the model and 2"):
        Translator(Transformer(TransformerConfig(300, 16, 1, 2, eos_id=3)), tokenizer)


# Beam search


def test_a_beam_of_one_is_the_default_and_greedy(tokenizer):
    translator = make(tokenizer)
    greedy = translator.translate(LINES)
    assert translator.translate(LINES, beam_size=1, alpha=3.0) == greedy
    assert [b.text for (b,) in translator.n_best(LINES, beam_size=1)] == greedy


def test_n_best_is_beam_search_between_encode_and_decode(tokenizer):
    translator = make(tokenizer)
    found = translator.n_best(LINES, 3, batch_size=2, beam_size=4, alpha=0.6)
    for line, some in zip(LINES, found, strict=True):
        src = torch.tensor([[*tokenizer.encode(line), 2]])
        (expected,) = beam_search(translator.model, src, 4, 0.6, 3)
        assert [one.tokens for one in some] == [h.tokens for h in expected]
        assert [one.text for one in some] == [
            tokenizer.decode(h.tokens) for h in expected
        ]
        assert [one.score for one in some] == pytest.approx(
            [h.score for h in expected], abs=1e-4
        )
    best = translator.translate(LINES, beam_size=4)
    assert best == [some[0].text for some in found]


def test_order_is_kept_with_a_beam(tokenizer):
    translator = make(tokenizer)
    lines = [" ".join(LINES[i % 6].split()[: 1 + i % 5]) for i in range(12)]
    lines[3] = lines[7] = ""
    alone = [translator.translate([line], beam_size=3)[0] for line in lines]
    assert alone[3] == alone[7] == "" and len(set(alone)) > 5
    for batch_size in (1, 5, 64):
        assert translator.translate(iter(lines), batch_size, 3) == alone


def test_a_blank_line_has_one_empty_translation(tokenizer):
    found = make(tokenizer).n_best([LINES[0], " "], 4, beam_size=4)
    assert [len(some) for some in found] == [4, 1]
    assert found[1][0].text == "" and found[1][0].ended


def test_prefixes_stay_with_their_lines(tokenizer):
    translator = make(tokenizer)
    prefixes = ["A", "", "Two men", "Nobody", "", "Zwei"]
    found = translator.n_best(LINES, 2, batch_size=2, prefixes=prefixes)
    for some, prefix in zip(found, prefixes, strict=True):
        assert all(one.text.startswith(prefix) for one in some)
    with pytest.raises(ValueError, match="1 prefixes for 6 lines"):
        translator.n_best(LINES, prefixes=["A"])


def test_a_prefix_that_is_too_long_names_its_line(tokenizer):
    prefixes = ["Hund " * 70, "Ein", "Hund " * 70]
    lines = ["A dog.", LINES[1], ""]  # a blank line has no translation to begin
    with pytest.raises(ValueError, match="line 1: a prefix of 350 tokens"):
        make(tokenizer, max_length=400).n_best(lines, prefixes=prefixes)
    found = make(tokenizer).n_best(lines, prefixes=["Ein", *prefixes[1:]])
    assert [best.text[:3] for best, *_ in found] == ["Ein", "Ein", ""]


def test_attention_names_the_pieces(tokenizer):
    translator = make(tokenizer)
    ((best,),) = translator.n_best(LINES[:1], beam_size=1)
    seen = translator.attention(LINES[0], best.tokens)
    s, t = len(seen.source), len(best.tokens) + 1
    assert seen.source == [*tokenizer.pieces(LINES[0]), "</s>"]
    assert seen.read[0] == "<s>" and seen.target[-1] == "</s>"
    assert seen.read[1:] == seen.target[:-1] and len(seen.target) == t
    shapes = [tuple(weights.shape) for weights in seen.maps]
    assert shapes == [(1, 2, s, s), (1, 2, t, t), (1, 2, t, s)]
    for weights in seen.maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_attention_for_a_translation_found_or_given(tokenizer):
    translator = make(tokenizer)
    ((best,),) = translator.n_best(LINES[:1], beam_size=1)
    found, same = (translator.attention(LINES[0], x) for x in (None, best.tokens))
    assert found[:3] == same[:3] and torch.equal(found.maps.cross, same.maps.cross)
    given = translator.attention(LINES[0], LINES[4])
    assert given.target == [*tokenizer.pieces(LINES[4]), "</s>"]
    with pytest.raises(ValueError, match="a translation of 120 tokens, .* the 119"):
        translator.attention(LINES[0], [270] * 120)


def test_an_ensemble(tokenizer):
    one, two = make(tokenizer), make(tokenizer, seed=1)
    itself = Translator(one.model, tokenizer, [one.model])
    assert itself.translate(LINES) == one.translate(LINES)
    both = Translator(one.model, tokenizer, [two.model])
    src = torch.tensor([[*tokenizer.encode(LINES[0]), 2]])
    ((expected,),) = beam_search([one.model, two.model], src)
    assert both.translate(LINES[:1], beam_size=4) == [tokenizer.decode(expected.tokens)]
    with pytest.raises(ValueError, match="an ensemble is several models"):
        both.save_pretrained("never")
    with pytest.raises(ValueError, match="vocab_size is 301 in the model and 300"):
        other = Transformer(TransformerConfig(301, 16, 1, 2))
        Translator(one.model, tokenizer, [other])


def test_conditions_reach_the_search(tokenizer):
    translator = make(tokenizer)
    for beam_size in (1, 3):
        options = {"beam_size": beam_size, "prefixes": ["Ein Hund"] * 6}
        found = translator.n_best(LINES, min_length=7, **options)
        texts = [best.text for (best,) in found]
        assert translator.translate(LINES, min_length=7, **options) == texts
        assert all(text.startswith("Ein Hund") for text in texts)
        assert all(len(best.tokens) >= 7 for (best,) in found)


# By lot


def test_samples_are_of_the_seed_and_the_number_of_the_line(tokenizer):
    translator = make(tokenizer)
    whole = translator.sample(LINES, 3)
    assert [len(found) for found in whole] == [3] * 6
    assert translator.sample(LINES, 3) == whole
    assert translator.sample(LINES[2:], 3, first=2) == whole[2:]
    assert translator.sample(["", *LINES[1:]], 3)[1:] == whole[1:]
    same = translator.sample([LINES[0]] * 2, 1)
    assert same[0] != same[1]
    assert translator.sample(LINES, 3, seed=1) != whole
    one = translator.sample(LINES, 1, temperature=1e-4)
    assert [text.text for (text,) in one] == translator.translate(LINES)


# Scores of given translations


def test_a_score_is_the_log_probability_of_the_pieces_and_eos(tokenizer):
    translator, outputs = make(tokenizer), [LINES[4], "", LINES[0], "x", "ß", LINES[5]]
    expected = []
    for line, output in zip(LINES, outputs, strict=True):
        src = torch.tensor([[*tokenizer.encode(line), 2]])
        tgt = torch.tensor([[1, *tokenizer.encode(output)]])
        with torch.no_grad():
            log_p = translator.model(src, tgt)[0].log_softmax(dim=-1)  # (T, V)
        labels = [*tokenizer.encode(output), 2]
        expected.append(log_p[range(len(labels)), labels].sum().item())
    for batch_size in (1, 64):
        scores = translator.score(iter(LINES), outputs, batch_size)
        assert scores == pytest.approx(expected, abs=1e-3)


def test_a_score_has_room_in_every_model(tokenizer):
    large, small = make(tokenizer), make(tokenizer, seed=1, max_length=60)
    both = Translator(large.model, tokenizer, [small.model])
    long = "a" + " 5" * 40
    assert 60 < len(tokenizer.encode(long)) < 110
    assert len(large.score(["a"], [long])) == 1
    with pytest.raises(ValueError, match="translation 1: .* more than the 59"):
        both.score(["a"], [long])


def test_scores_of_blank_lines_and_of_lines_without_a_partner(tokenizer):
    translator = make(tokenizer)
    scores = translator.score(["", " ", LINES[0]], ["", "Ein Hund.", ""])
    assert scores[:2] == [0.0, -float("inf")] and -100 < scores[2] < 0
    with pytest.raises(ValueError, match="1 translations for 2 lines"):
        translator.score(LINES[:2], ["Ein Hund."])
    with pytest.raises(ValueError, match="translation 2: .* tokens, more than the 119"):
        translator.score(LINES[:2], ["Ein Hund.", "Hund " * 300])


# Models by name, checkpoints, ensembles


@pytest.fixture
def ships(tokenizer, tmp_path, monkeypatch):
    """A package in which one model ships, in half precision."""
    translator = make(tokenizer)
    folder = tmp_path / "package" / "models" / "tiny-en-de"
    translator.save_pretrained(folder, torch.float16)
    (folder / "README.md").write_text("what it is")
    (folder.parent / "unfinished").mkdir()
    package = tmp_path / "package"
    monkeypatch.setattr("annotated_transformer.translator.files", lambda _: package)
    monkeypatch.chdir(tmp_path)
    return translator


def test_a_model_that_ships_is_found_by_its_name(ships, tokenizer, tmp_path):
    assert shipped_models() == ["tiny-en-de"]
    loaded = Translator.from_pretrained("tiny-en-de")
    state = ships.model.state_dict().items()
    ships.model.load_state_dict({name: value.half() for name, value in state})
    assert loaded.translate(LINES) == ships.translate(LINES)
    make(tokenizer, seed=1).save_pretrained("tiny-en-de")  # a folder goes before
    assert find_model("tiny-en-de") == Path("tiny-en-de")


def test_a_model_that_is_nowhere_is_named_with_those_there_are(ships):
    with pytest.raises(ValueError, match="^tiny-en-fr: no such folder, and no model"):
        Translator.from_pretrained("tiny-en-fr")
    with pytest.raises(ValueError, match=r"ships with the package \(tiny-en-de\)"):
        Translator.from_pretrained("models/tiny-en-de")


def test_what_ships_can_be_loaded():
    """Whatever ships with this version: whole, and within its size."""
    for name in shipped_models():
        size = sum(path.stat().st_size for path in find_model(name).iterdir())
        assert size <= 25e6 and (find_model(name) / "README.md").is_file()
        assert Translator.from_pretrained(name).translate(["A dog."]) != [""]


def test_half_precision_on_the_disk_is_float32_in_memory(tokenizer, tmp_path):
    translator = make(tokenizer)
    state = translator.model.state_dict()
    for dtype in (torch.float16, torch.bfloat16):
        translator.save_pretrained(tmp_path / "half", dtype)
        loaded = Translator.from_pretrained(tmp_path / "half").model.state_dict()
        for name, value in state.items():
            assert loaded[name].dtype == torch.float32
            assert torch.equal(loaded[name], value.to(dtype).float())
        assert translator.model.embedding.weight.dtype == torch.float32
    whole = tmp_path / "whole"
    translator.save_pretrained(whole)
    sizes = [
        (f / "model.safetensors").stat().st_size for f in (whole, tmp_path / "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_weight_too_large_for_half_precision_is_refused(tokenizer, tmp_path):
    translator = make(tokenizer)
    with torch.no_grad():
        translator.model.embedding.weight[7, 0] = 1e5
    with pytest.raises(ValueError, match="embedding.weight has numbers too large"):
        translator.save_pretrained(tmp_path / "half", torch.float16)
    assert not (tmp_path / "half").exists()
    translator.save_pretrained(tmp_path / "half", torch.bfloat16)


def checkpoint(folder, translator, step):
    """A checkpoint as a training run writes it, with a state of the optimiser."""
    folder.mkdir(parents=True, exist_ok=True)
    translator.tokenizer.save(folder / "tokenizer.model")
    state = translator.model.state_dict().items()
    tensors = {f"model.{name}": value for name, value in state}
    tensors |= {f"adam.exp_avg.{name}": value * 0 + 9 for name, value in state}
    settings = run_settings(translator.model.config, TrainingConfig(max_tokens=100))
    path = folder / f"step-{step:08}.safetensors"
    write_checkpoint(path, tensors, Progress(step=step), settings)
    return path


def test_a_checkpoint_is_a_model(tokenizer, tmp_path):
    translator = make(tokenizer, norm="pre", n_heads=4)
    path = checkpoint(tmp_path / "checkpoints", translator, 20)
    loaded = Translator.from_pretrained(path)
    assert loaded.model.config == translator.model.config
    assert loaded.translate(LINES) == translator.translate(LINES)
    (path.parent / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="20.safetensors has no tokenizer.model"):
        Translator.from_pretrained(path)
    path.write_text("not one")
    with pytest.raises(ValueError, match="20.safetensors is not a whole checkpoint"):
        Translator.from_pretrained(path)


def test_the_last_checkpoints_are_averaged(tokenizer, tmp_path):
    several = [make(tokenizer, seed) for seed in range(3)]
    for step, one in zip((5, 100, 20), several, strict=True):
        checkpoint(tmp_path / "run" / "checkpoints", one, step)
    paths = last_checkpoints(tmp_path / "run", 2)
    assert [int(path.stem[5:]) for path in paths] == [20, 100]
    mean = average_pretrained(paths).model.state_dict()
    for name, value in several[1].model.state_dict().items():
        other = several[2].model.state_dict()[name]
        assert torch.allclose(mean[name], (value + other) / 2, atol=1e-6)
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"run has 3 checkpoints, and {n} are"):
            last_checkpoints(tmp_path / "run", n)


def test_an_ensemble_of_none():
    with pytest.raises(ValueError, match="an ensemble of no models"):
        Translator.ensemble([])


def test_weights_alone_are_no_checkpoint(tokenizer, tmp_path):
    make(tokenizer).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="holds the state of no run") as caught:
        Translator.from_pretrained(path)
    assert str(path) in str(caught.value)


def test_an_ensemble_from_the_disk(tokenizer, tmp_path):
    first, second = make(tokenizer), make(tokenizer, seed=1, n_heads=4)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    loaded = Translator.ensemble([tmp_path / "a", tmp_path / "b"])
    both = Translator(first.model, tokenizer, [second.model])
    assert loaded.n_best(LINES) == both.n_best(LINES) != first.n_best(LINES)
    other = Tokenizer.train([line[::-1] for line in LINES], 300)
    make(other).save_pretrained(tmp_path / "c")
    with pytest.raises(ValueError, match="c has another tokenizer.model than .*a$"):
        Translator.ensemble([tmp_path / "a", tmp_path / "b", tmp_path / "c"])


# Averaging


def states(*seeds, dtype=torch.float32):
    config = TransformerConfig(30, 16, 1, 2, d_ff=32)
    made = []
    for seed in seeds:
        torch.manual_seed(seed)
        made.append(Transformer(config).to(dtype).state_dict())
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
def test_the_average_of_a_state_with_itself_is_that_state(n, dtype):
    (state,) = states(0, dtype=dtype)
    mean = average_weights([state] * n)
    assert mean.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(mean[name], value) and mean[name].dtype == dtype


def test_the_average_is_exact_and_leaves_its_input_alone():
    three = states(0, 1, 2)
    before = [{name: value.clone() for name, value in s.items()} for s in three]
    mean = average_weights(iter(three))
    for name in mean:
        exact = torch.stack([s[name].double() for s in before]).mean(0).float()
        assert torch.equal(mean[name], exact)
        for state, copy in zip(three, before, strict=True):
            assert torch.equal(state[name], copy[name])


def test_tied_weights_are_averaged_once_and_stay_tied():
    one, two = states(0, 1)
    model = Transformer(TransformerConfig(30, 16, 1, 2, d_ff=32))
    model.load_state_dict(average_weights([one, two]))
    tied = [p for p in model.parameters() if p.shape == (30, 16)]
    assert len(tied) == 1 and tied[0] is model.embedding.weight
    exact = (one["embedding.weight"].double() + two["embedding.weight"].double()) / 2
    assert torch.equal(tied[0].detach(), exact.float())


def test_what_cannot_be_averaged():
    with pytest.raises(ValueError, match="no states"):
        average_weights([])
    one, two = states(0, 1)
    for spoil, message in (
        (
            lambda s: s.pop("embedding.weight"),
            r"embedding\.weight is .* and missing in 2",
        ),
        (lambda s: s.update(more=torch.ones(1)), "more is missing in state 1"),
        (
            lambda s: s.update({"embedding.weight": torch.ones(31, 16)}),
            r"embedding\.weight is .*\(30, 16\).* in state 1 and .*\(31, 16\).* in 2",
        ),
        (
            lambda s: s.update({"embedding.weight": s["embedding.weight"].half()}),
            r"float32.* in state 1 and .*float16.* in 2",
        ),
    ):
        spoiled = dict(two)
        spoil(spoiled)
        with pytest.raises(ValueError, match=message) as caught:
            average_weights([one, spoiled])
        assert "\n" not in str(caught.value)


def test_folders_are_averaged(tokenizer, tmp_path):
    made = [make(tokenizer, seed) for seed in range(3)]
    folders = [tmp_path / str(i) for i in range(3)]
    for translator, folder in zip(made, folders, strict=True):
        translator.save_pretrained(folder)
    averaged = average_pretrained(folders)
    expected = average_weights([one.model.state_dict() for one in made])
    for name, value in averaged.model.state_dict().items():
        assert torch.equal(value, expected[name])
    averaged.save_pretrained(tmp_path / "mean")
    again = Translator.from_pretrained(tmp_path / "mean")
    assert torch.equal(logits(again), logits(averaged))


def test_folders_that_do_not_belong_together(tokenizer, tmp_path):
    first = tmp_path / "first"
    make(tokenizer).save_pretrained(first)
    make(tokenizer, n_heads=4).save_pretrained(tmp_path / "heads")
    other = Tokenizer.train([line[::-1] for line in LINES], 300)
    make(other).save_pretrained(tmp_path / "pieces")
    for name, file in (("heads", "configuration"), ("pieces", "tokenizer.model")):
        with pytest.raises(ValueError, match=f"{name} has another {file} than .*first"):
            average_pretrained([first, tmp_path / name])
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        average_pretrained([first, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no states"):
        average_pretrained([])


# Saving and loading

FRESH = """
import sys, torch
from annotated_transformer import Translator
translator = Translator.from_pretrained(sys.argv[1])
assert not translator.model.training
src = torch.tensor([[262, 270, 281, 2], [290, 2, 0, 0]])
with torch.no_grad():
    logits = translator.model(src, torch.tensor([[1, 263], [1, 299]]))
sys.stdout.buffer.write(logits.numpy().tobytes())
sys.stdout.buffer.write("|".join(translator.translate(sys.argv[2:])).encode())
"""


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"norm": "pre", "positions": "learned"}])
def test_the_same_to_the_bit_in_a_fresh_process(tokenizer, tmp_path, changes):
    translator = make(tokenizer, dropout=0.4, **changes)
    translator.model.train()
    translator.save_pretrained(tmp_path / "deep" / "model")
    translator.model.eval()
    command = [sys.executable, "-c", FRESH, tmp_path / "deep" / "model", *LINES]
    done = subprocess.run(command, capture_output=True, check=True)
    texts = "|".join(translator.translate(LINES)).encode()
    assert done.stdout == logits(translator).numpy().tobytes() + texts


def test_three_files_and_no_pickle(tokenizer, tmp_path, monkeypatch):
    translator = make(tokenizer)

    def forbidden(*args, **kwargs):
        raise AssertionError("pickle")

    for module, name in ((torch, "save"), (torch, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, forbidden)
    translator.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == FILES
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert weights.keys() == translator.model.state_dict().keys()
    loaded = Translator.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(translator))
    mode = (tmp_path / "model.safetensors").stat().st_mode
    assert mode == (tmp_path / "config.json").stat().st_mode


def test_still_one_matrix_for_both_ends(tokenizer, tmp_path):
    make(tokenizer).save_pretrained(tmp_path)
    model = Translator.from_pretrained(tmp_path, device="cpu").model
    assert sum(p.numel() == 300 * 16 for p in model.parameters()) == 1


class Stop(BaseException):
    """The machine goes off."""


@pytest.mark.parametrize("before", ["nothing", "same shape", "other shape"])
@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_broken_save_never_looks_whole(
    tokenizer, tmp_path, monkeypatch, before, function, call
):
    old = make(tokenizer, 1, d_ff=32 if before == "same shape" else 48)
    new, folder = make(tokenizer, 2), tmp_path / "model"
    if before != "nothing":
        old.save_pretrained(folder)
    calls, real = [], getattr(os, function)

    def stops(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Stop
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, stops)
        try:
            new.save_pretrained(folder)
        except Stop:
            pass
    whole = [new] if before == "nothing" else [old, new]
    try:
        loaded = logits(Translator.from_pretrained(folder))
    except ValueError:
        assert before != "same shape"  # a model that is replaced like by like stays
    else:
        assert any(torch.equal(loaded, logits(translator)) for translator in whole)
    new.save_pretrained(folder)  # and the folder is none the worse
    assert torch.equal(logits(Translator.from_pretrained(folder)), logits(new))


@pytest.mark.parametrize("name", FILES)
def test_saving_over_another_tokenizer_never_mixes_the_two(
    tokenizer, tmp_path, monkeypatch, name
):
    other = Tokenizer.train([line[::-1] for line in LINES], 300)
    make(other).save_pretrained(tmp_path)
    real = os.replace

    def stops(source, destination):
        if Path(destination).name == name:
            raise Stop
        real(source, destination)

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(Stop):
        make(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        Translator.from_pretrained(tmp_path)


# Broken models


def spoil_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil_weights(folder, spoil):
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    spoil(weights)
    safetensors.torch.save_file(weights, path)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


NOT_WHOLE = r"model\.safetensors: not a whole safetensors file"
BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"has no model\.safetensors",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.model").unlink(),
        r"has no tokenizer\.model",
    ),
    "config cut": (lambda f: cut(f / "config.json", 40), r"config\.json: "),
    "config empty": (lambda f: cut(f / "config.json", 0), r"config\.json: "),
    "config a list": (
        lambda f: (f / "config.json").write_text("[1]"),
        r"config\.json: not a JSON object",
    ),
    "config not UTF-8": (
        lambda f: (f / "config.json").write_bytes(b"\xff{}"),
        r"config\.json: ",
    ),
    "unknown field": (
        lambda f: spoil_config(f, n_heds=3),
        r"config\.json: unknown configuration field: n_heds",
    ),
    "missing field": (
        lambda f: (f / "config.json").write_text("{}"),
        r"config\.json: .*vocab_size",
    ),
    "field of another type": (
        lambda f: spoil_config(f, dropout="high"),
        r"config\.json: ",
    ),
    "field out of range": (
        lambda f: spoil_config(f, n_heads=5),
        r"config\.json: d_model is 16",
    ),
    "weights a text file": (
        lambda f: (f / "model.safetensors").write_text("not weights\n" * 9),
        NOT_WHOLE,
    ),
    "weights cut": (lambda f: cut(f / "model.safetensors", 9000), NOT_WHOLE),
    "weights short by a byte": (lambda f: cut(f / "model.safetensors", -1), NOT_WHOLE),
    "weights empty": (lambda f: cut(f / "model.safetensors", 0), NOT_WHOLE),
    "weights a pickle": (
        lambda f: torch.save({"x": torch.ones(2)}, f / "model.safetensors"),
        NOT_WHOLE,
    ),
    "another shape": (
        lambda f: spoil_config(f, d_ff=64),
        r"model\.safetensors does not fit config\.json: .* \(32,\) .* \(64,\)",
    ),
    "a layer more": (
        lambda f: spoil_config(f, n_layers=2),
        r"model\.safetensors does not fit config\.json: .* is missing",
    ),
    "a tensor too many": (
        lambda f: spoil_weights(f, lambda w: w.update(more=torch.ones(1))),
        r"model\.safetensors does not fit config\.json: more .* should be absent",
    ),
    "tokenizer a text file": (
        lambda f: (f / "tokenizer.model").write_text("pieces"),
        r"tokenizer\.model: ",
    ),
    "tokenizer of another size": (
        lambda f: Tokenizer.train(LINES, 310).save(f / "tokenizer.model"),
        "vocab_size is 300 in the model and 310 in the tokenizer",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_refused_and_named(tokenizer, tmp_path, what):
    make(tokenizer).save_pretrained(tmp_path)
    spoil, message = BROKEN[what]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        Translator.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        Translator.from_pretrained(tmp_path / "nowhere")
