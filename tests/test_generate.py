"""Generated tokens against a hand-written loop without cache, padding or batch; what ends a response; streaming."""

from __future__ import annotations

import threading
from typing import Any

import oracles
import pytest
import torch

import lensteer
from lensteer import Add, SetProjection, Steering, at, generate, per_row, stream
from lensteer.hooks import Edit
from lensteer.points import resolve

# From 2 to 30-odd tokens, so some stay below the tiny Gemma-2's sliding window of 8 and some do not.
PROMPTS = ["The sky", "A", "Rain falls on the roof, and on us"]
NAMES = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "z": "blocks.{}.attn.hook_z",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "post": "blocks.{}.mlp.hook_post",
}
SCOPES: list[Any] = ["all", "prompt", "generated", "last", 1, -2, slice(-3, None), slice(1, -1), [0, -1, 4]]
NEW = 4


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def edit_and_change(
    case: Any, site: str, scope: Any, operator: type[Edit], layer: int = 1, size: float = 1.0
) -> tuple[Steering, oracles.Change]:
    """The same edit twice: as lensteer makes it, and by its formula for the oracle."""
    shape = resolve(case.model, site, layer)[0].shape
    vector = random(*shape, seed=layer)
    size *= 5 if isinstance(scope, int) else 1  # one token has to make itself felt
    if operator is Add:
        edit: Edit = Add(vector, 3.0 * size)
        formula = oracles.add(vector, 3.0 * size)
    else:
        edit = SetProjection(vector, 25.0 * size, 0.9)
        formula = oracles.set_projection(vector, 25.0 * size, 0.9)
    return Steering([(NAMES[site].format(layer), at(edit, scope))]), oracles.Change(site, layer, formula, scope)


def tokens(case: Any, prompts: Any, steering: Any = None, new: int = NEW, **options: Any) -> list[list[int]]:
    options = {"prompt_format": "plain", "progress": False, **options}
    return generate(case.model, prompts, steering, max_new_tokens=new, **options)["token_ids"].tolist()


def expected(case: Any, prompts: Any, changes: Any, new: int = NEW) -> list[oracles.Greedy]:
    stop = {2, case.tokenizer.eos_token_id, case.tokenizer.convert_tokens_to_ids("<|end|>")}
    if case.tokenizer.chat_template is None or case.name == "smollm2":
        stop = {case.tokenizer.eos_token_id}
    ids = [case.tokenizer(prompt)["input_ids"] for prompt in prompts]
    return [oracles.greedy(case.hf, row, new, changes, sorted(stop)) for row in ids]


def assert_same(found: list[list[int]], wanted: list[oracles.Greedy]) -> None:
    """Equal up to the first near-tie, which must not come at once."""
    assert sum(len(greedy.sure) for greedy in wanted) >= 0.3 * sum(len(greedy.ids) for greedy in wanted) > 0
    for ids, greedy in zip(found, wanted, strict=True):
        assert ids[: len(greedy.sure)] == greedy.sure
        assert len(greedy.sure) < len(greedy.ids) or len(ids) == len(greedy.ids)


CELLS = [
    *((Add, "resid_post", scope) for scope in SCOPES),
    *((SetProjection, "resid_post", scope) for scope in ("all", "prompt", "generated", "last", slice(1, -1))),
    *((Add, "z", scope) for scope in ("all", "generated", -2)),
    *((SetProjection, "mlp_out", scope) for scope in ("all", "last", slice(-3, None))),
    (Add, "resid_pre", "prompt"),
    (Add, "attn_out", "all"),
    (SetProjection, "post", "all"),
    (SetProjection, "z", "prompt"),
]


@pytest.fixture(scope="module")
def unsteered() -> Any:
    """The oracle's tokens without any edit, once per model."""
    known: dict[str, list[list[int]]] = {}

    def of(case: Any) -> list[list[int]]:
        if case.name not in known:
            known[case.name] = [greedy.ids for greedy in expected(case, PROMPTS, [])]
        return known[case.name]

    return of


@pytest.mark.parametrize(("operator", "site", "scope"), CELLS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_steered_tokens_equal_those_of_a_loop_without_cache_batch_or_padding(
    tiny, unsteered, operator, site, scope
) -> None:
    steering, change = edit_and_change(tiny, site, scope, operator)
    wanted = expected(tiny, PROMPTS, [change])
    pairs = zip([greedy.ids for greedy in wanted], unsteered(tiny), strict=True)
    assert any(a != b for a, b in pairs)  # else this would prove nothing
    assert_same(tokens(tiny, PROMPTS, steering), wanted)
    assert_same(tokens(tiny, PROMPTS, steering, use_cache=False), wanted)
    if scope in ("all", "generated"):
        assert_same(tokens(tiny, PROMPTS, steering, batch_size=1), wanted)


def test_unsteered_tokens_equal_the_plain_models(tiny) -> None:
    wanted = expected(tiny, PROMPTS, [])
    assert_same(tokens(tiny, PROMPTS), wanted)
    assert_same(tokens(tiny, PROMPTS, batch_size=2), wanted)
    assert_same(tokens(tiny, PROMPTS, use_cache=False), wanted)


@pytest.mark.parametrize("scope", ["all", "last", slice(-3, None)], ids=str)
def test_several_edits_at_several_places_add_up_in_order(tiny, scope: Any) -> None:
    parts = [
        edit_and_change(tiny, "resid_post", scope, Add, layer=2, size=0.5),
        edit_and_change(tiny, "resid_post", "all", SetProjection, layer=2, size=0.3),
        edit_and_change(tiny, "z", scope, Add, layer=0),
        edit_and_change(tiny, "mlp_out", "generated", SetProjection, layer=3),
    ]
    steering = sum((part for part, _ in parts), Steering())
    assert_same(tokens(tiny, PROMPTS, steering), expected(tiny, PROMPTS, [change for _, change in parts]))


# ---- through the lens


@pytest.mark.parametrize("scope", ["prompt", "generated", slice(-3, None)], ids=str)
def test_the_lens_generates_the_same_under_the_same_steering(tiny, scope: Any) -> None:
    steering, change = edit_and_change(tiny, "resid_post", scope, Add)
    wanted = expected(tiny, PROMPTS, [change], new=4)
    rows = [tiny.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    options = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "attention_mask": mask, "stop_at_eos": False}
    with steering.on(tiny.model):
        first = tiny.model.generate(ids, **options)
    with tiny.model.hooks(fwd_hooks=steering):  # with the clock that load_model gives the lens
        second = tiny.model.generate(ids, **options)
    for output in (first, second):
        cut = [row[: len(greedy.ids)] for row, greedy in zip(output[:, width:].tolist(), wanted, strict=True)]
        assert_same(cut, wanted)


@pytest.mark.parametrize("scope", ["all", "last", 1, slice(1, -1), [0, -1, 4]], ids=str)
def test_run_with_hooks_takes_a_steering_as_its_list_of_hooks(tiny, scope: Any) -> None:
    for operator, site in ((Add, "resid_post"), (SetProjection, "z")):
        steering, change = edit_and_change(tiny, site, scope, operator)
        for prompt in PROMPTS:
            ids = tiny.tokenizer(prompt)["input_ids"]
            with torch.no_grad():
                logits = tiny.model.run_with_hooks(torch.tensor([ids]), fwd_hooks=steering)
            wanted = oracles.next_log_probs(tiny.hf, ids, [change], len(ids))
            torch.testing.assert_close(logits[0, -1].log_softmax(-1), wanted, atol=2e-4, rtol=1e-3)


def test_an_edit_at_a_point_of_the_lens_alone_runs_through_the_lens(tiny) -> None:
    """On the values; the oracle is TransformerLens itself, one prompt at a time, without a cache."""
    vector = random(*resolve(tiny.model, "v", 1)[0].shape)
    name = "blocks.1.attn.hook_v"
    found = tokens(tiny, PROMPTS, Steering([(name, Add(vector, 3.0))]))
    assert found != tokens(tiny, PROMPTS)
    for prompt, ids in zip(PROMPTS, found, strict=True):
        sequence = tiny.tokenizer(prompt)["input_ids"]
        for token in ids:
            with torch.no_grad():
                logits = tiny.model.run_with_hooks(
                    torch.tensor([sequence]), fwd_hooks=[(name, lambda x, hook: x + 3.0 * vector)]
                )
            best = logits[0, -1].topk(2)
            if best.values[0] - best.values[1] < 1e-3:
                break
            assert int(best.indices[0]) == token
            sequence = [*sequence, token]


# ---- duplicated prompts, strengths per row


@pytest.fixture
def prefixes(monkeypatch) -> list[bool]:
    """For every batch with duplicated prompts: whether their common part was computed once."""
    import lensteer.prefix

    real, used = lensteer.prefix._read_prefix, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        used.append(result is not None)
        return result

    monkeypatch.setattr(lensteer.prefix, "_read_prefix", spy)
    return used


@pytest.mark.parametrize(
    ("layer", "scope"), [(0, "all"), (1, slice(-3, None)), (2, "last"), (3, "all"), (0, "generated")]
)
def test_duplicated_prompts_share_their_beginning_and_nothing_else(tiny, prefixes, layer: int, scope: Any) -> None:
    prompts = ["Why no", "A", "Why no", "Why no", "A"]  # short enough for the sliding window
    strengths = torch.tensor([0.0, 2.0, -3.0, 5.0, 0.0])
    vector = random(32, seed=layer)
    steering = Steering([(f"blocks.{layer}.hook_resid_post", at(Add(vector, strengths), scope))])
    found = tokens(tiny, prompts, steering)
    assert prefixes == ([True] if layer > 0 or scope == "generated" else [])
    for prompt, strength, ids in zip(prompts, strengths.tolist(), found, strict=True):
        change = oracles.Change("resid_post", layer, oracles.add(vector, strength), scope)
        assert_same([ids], expected(tiny, [prompt], [change]))


def test_duplicated_prompts_longer_than_a_sliding_window_are_right_too(tiny, prefixes) -> None:
    prompts = [PROMPTS[2], "Rain falls on us", PROMPTS[2], "Rain falls on us"]
    steering, change = edit_and_change(tiny, "resid_post", "all", Add, layer=3)
    assert_same(tokens(tiny, prompts, steering), expected(tiny, prompts, [change]))
    assert prefixes == [tiny.name != "gemma2"]


def test_duplicated_prompts_without_steering_are_read_once(tiny, prefixes) -> None:
    prompts = ["Why no", "Why no", "A"]
    assert_same(tokens(tiny, prompts), expected(tiny, prompts, []))
    assert prefixes == [True]


def test_a_padded_prompt_is_not_taken_for_one_that_starts_with_another_token(gpt2, prefixes) -> None:
    """The padding id here is 2, and the text <bos> is token 1."""
    prompts = ["<bos>Why", "Why", "<bos>Why", "<eos>Why"]
    steering, change = edit_and_change(gpt2, "resid_post", "all", Add, layer=3)
    assert_same(tokens(gpt2, prompts, steering), expected(gpt2, prompts, [change]))
    assert prefixes == [True]


def test_an_error_while_prompts_are_shared_restores_every_patched_module(llama, fresh) -> None:
    case = fresh("llama")
    own = case.hf.model.layers[0].forward
    case.hf.model.layers[0].forward = own  # as accelerate leaves it on models spread over devices
    before = oracles.hooks_on(case.hf)

    def fail(module: Any, args: Any) -> None:
        if args[0].shape[1] == 1:
            raise KeyboardInterrupt

    handle = case.hf.model.layers[3].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        tokens(case, ["Why not", "Why not"])
    handle.remove()
    assert oracles.hooks_on(case.hf) == before
    assert case.hf.model.layers[0].forward is own


@pytest.mark.parametrize("operator", [Add, SetProjection])
def test_strengths_per_row_equal_every_row_alone(tiny, operator: type[Edit]) -> None:
    strengths = torch.tensor([0.0, 3.0, -2.0])
    edit: Edit = Add(random(32), strengths) if operator is Add else SetProjection(random(32), 20.0, strengths / 3)
    steering = Steering([("blocks.1.hook_resid_post", edit)])
    together = tokens(tiny, PROMPTS, steering)
    for i, prompt in enumerate(PROMPTS):
        single = Steering([("blocks.1.hook_resid_post", edit.at_strength(float(edit.strength[i])))])  # type: ignore[index]
        assert tokens(tiny, [prompt], single) == [together[i]]


def test_several_steerings_in_one_batch_equal_each_alone(tiny) -> None:
    v, w = random(32), random(32, seed=1)
    post, z = "blocks.1.hook_resid_post", "blocks.2.attn.hook_z"
    candidates = [
        Steering(),
        Steering([(post, Add(v, 2.0))]),
        Steering([(post, Add(v, -4.0)), (z, SetProjection(random(4, 8), 9.0))]),
        Steering([(post, SetProjection(w, 20.0)), (post, Add(v, 3.0))]),
        Steering([(post, Add(v, 3.0)), (post, SetProjection(w, 20.0))]),  # the same two the other way round
        Steering([(post, at(Add(v, 5.0), "generated"))]),
        Steering([(post, Add(v, 2.0)), (post, Add(v, 2.0))]),
    ]
    prompts = [PROMPTS[i % 3] for i in range(len(candidates))]
    together = tokens(tiny, prompts, per_row(candidates))
    for prompt, candidate, ids in zip(prompts, candidates, together, strict=True):
        assert tokens(tiny, [prompt], candidate) == [ids]


# ---- the real model


def test_the_real_model_is_steered_right(smollm2) -> None:
    prompts = ["The capital of France is", "Rain"]
    steering, change = edit_and_change(smollm2, "resid_post", "all", Add, layer=20, size=0.3)
    wanted = expected(smollm2, prompts, [change], new=3)
    assert_same(tokens(smollm2, prompts, steering, new=3), wanted)
    steering, change = edit_and_change(smollm2, "resid_post", "generated", SetProjection, layer=20, size=3)
    wanted = expected(smollm2, prompts, [change], new=3)
    assert_same(tokens(smollm2, [*prompts, *prompts], steering, new=3), [*wanted, *wanted])


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "site"), [(Add, "resid_post"), (SetProjection, "mlp_out"), (Add, "z")])
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_the_real_model_is_steered_right_in_every_scope(smollm2, operator, site, scope) -> None:
    prompts = ["The capital of France is", "Rain", "One, two, three, four,"]
    size = 3.0 if operator is SetProjection else 0.3
    steering, change = edit_and_change(smollm2, site, scope, operator, layer=15, size=size)
    wanted = expected(smollm2, prompts, [change])
    assert_same(tokens(smollm2, prompts, steering), wanted)
    assert_same(tokens(smollm2, prompts, steering, batch_size=1), wanted)
    assert_same(tokens(smollm2, prompts, steering, use_cache=False), wanted)
    assert_same(tokens(smollm2, [*prompts, *prompts], steering), [*wanted, *wanted])


# ---- what ends a response, and what the table says


def continuation(case: Any, prompt: str, new: int = 12) -> list[int]:
    ids = case.tokenizer(prompt)["input_ids"]
    return oracles.greedy(case.hf, ids, new).ids


def test_the_table_has_one_row_per_prompt_in_order(llama) -> None:
    table = generate(llama.model, PROMPTS, max_new_tokens=3, prompt_format="plain", progress=False)
    assert list(table.columns) == ["prompt", "response", "token_ids", "n_tokens", "finish_reason"]
    assert table["prompt"].tolist() == PROMPTS
    assert table["n_tokens"].tolist() == [len(ids) for ids in table["token_ids"]]
    assert table["response"].tolist() == [llama.tokenizer.decode(ids) for ids in table["token_ids"]]
    assert set(table["finish_reason"]) == {"length"}


@pytest.mark.parametrize("place", ["generation config", "tokenizer", "chat template"])
def test_every_kind_of_stop_token_ends_a_response_and_is_left_out(fresh, place: str) -> None:
    case = fresh("gpt2")
    ids = continuation(case, "Why")
    last = next(i for i in range(2, 12) if ids[i] not in ids[:i])  # a token that comes up for the first time
    token = case.tokenizer.convert_ids_to_tokens(ids[last])
    if place == "generation config":
        case.hf.generation_config.eos_token_id = [ids[last]]
    elif place == "tokenizer":
        case.tokenizer.eos_token = token
    else:
        case.tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        case.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + token + "{% endfor %}"
    options = {"max_new_tokens": 12, "prompt_format": "plain", "progress": False}
    table = generate(case.model, ["Why", "A longer one"], **options)
    assert table["token_ids"][0] == ids[:last]
    assert table["finish_reason"][0] == "stop"
    assert table["token_ids"][1] == continuation(case, "A longer one")
    assert table["finish_reason"][1] == "length"


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_stop_string_ends_a_response_and_is_cut_off_with_its_padding(llama, use_cache: bool) -> None:
    """Rows that end early are padded to the longest with a token that is not a stop token here."""
    free = generate(llama.model, PROMPTS, max_new_tokens=16, prompt_format="plain", progress=False)
    text = free["response"][0]
    stop = text[5:7]
    assert stop.isprintable() or stop
    options = {"max_new_tokens": 16, "prompt_format": "plain", "progress": False, "use_cache": use_cache}
    table = generate(llama.model, PROMPTS, stop=[stop], **options)
    cut = text.index(stop)
    assert table["response"][0] == text[:cut]
    assert table["finish_reason"][0] == "stop"
    assert table["token_ids"][0] == free["token_ids"][0][: table["n_tokens"][0]]
    decoded = llama.tokenizer.decode(table["token_ids"][0])
    assert stop in decoded
    assert stop not in llama.tokenizer.decode(table["token_ids"][0][:-1])
    assert generate(llama.model, PROMPTS, stop=stop, **options)["response"].tolist() == table["response"].tolist()
    for i in (1, 2):
        if stop not in free["response"][i]:
            assert table["token_ids"][i] == free["token_ids"][i]


def test_greedy_is_greedy_whatever_the_models_own_generation_config_says(fresh) -> None:
    case = fresh("neox")
    clean = tokens(case, PROMPTS, new=10)
    wanted = expected(case, PROMPTS, [], new=10)
    assert any(len(set(ids)) < len(ids) for ids in clean)  # it repeats itself, so a ban on repetition would show
    own = case.hf.generation_config
    own.no_repeat_ngram_size, own.repetition_penalty, own.min_new_tokens = 1, 1.7, 3
    own.suppress_tokens, own.do_sample, own.temperature = [wanted[0].ids[0]], True, 2.0
    own.num_beams, own.cache_implementation, own.max_new_tokens = 3, "static", 2
    assert tokens(case, PROMPTS, new=10) == clean
    assert case.hf.generation_config is own


def test_an_open_steering_and_a_given_one_both_count(tiny) -> None:
    outer, first = edit_and_change(tiny, "resid_post", "last", Add, layer=1)
    inner, second = edit_and_change(tiny, "resid_post", "generated", SetProjection, layer=2)
    with outer.on(tiny.model):
        found = tokens(tiny, [*PROMPTS, PROMPTS[0]], inner)
        uncached = tokens(tiny, PROMPTS, inner, use_cache=False)
    wanted = expected(tiny, [*PROMPTS, PROMPTS[0]], [first, second])
    assert_same(found, wanted)
    assert_same(uncached, wanted[:3])


# ---- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, r"max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, r"temperature must be 0 \(greedy\) or positive, got -1"),
        ({"temperature": float("nan")}, r"temperature must be .*got nan"),
        ({"temperature": 1.0, "top_k": 0}, r"top_k must be a positive integer.*got 0"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p must lie in \(0, 1\].*got 1.5"),
        ({"batch_size": 0}, r"batch_size must be 'auto' or a positive integer, got 0"),
        ({"max_new_tokens": 127}, r"prompt 0 has 8 tokens.*context of 128 leaves 1 for it \(127 are kept"),
        ({"stop": [""]}, r"stop.*empty"),
    ],
)
def test_bad_options_are_refused_before_any_pass(llama, forwards, options: Any, words: str) -> None:
    resolve(llama.model, "resid_post")
    options = {"max_new_tokens": 4, "prompt_format": "plain", **options}
    with forwards(llama) as calls, pytest.raises(ValueError, match=words):
        generate(llama.model, ["The sky", "The sky"], progress=False, **options)
    assert calls == []


@pytest.mark.parametrize(
    ("pairs", "error", "words"),
    [
        ([("blocks.1.hook_resid_pots", Add(random(32)))], ValueError, r"no hook point 'blocks.1.hook_resid_pots'"),
        ([("blocks.7.hook_resid_post", Add(random(32)))], ValueError, r"no hook point 'blocks.7.hook_resid_post'"),
        ([("blocks.1.hook_resid_mid", Add(random(32)))], ValueError, r"cannot be edited.*attn_out"),
        (
            [("blocks.1.hook_resid_post", Add(random(48)))],
            ValueError,
            r"shape \(48,\), but LlamaForCausalLM has \(32,\)",
        ),
        ([("blocks.1.attn.hook_z", Add(random(32)))], ValueError, r"shape \(32,\), but LlamaForCausalLM has \(4, 8\)"),
        ([("blocks.1.hook_resid_post", Add(random(32), torch.ones(3)))], ValueError, r"values for 3 prompts, but 2"),
        (
            [("blocks.1.hook_resid_post", Add(random(32), torch.ones(n))) for n in (2, 3)],
            ValueError,
            r"different numbers of rows: \[2, 3\]",
        ),
        (
            [("blocks.1.hook_resid_post", lambda x, hook: x)],
            TypeError,
            r"'blocks.1.hook_resid_post' is a function; a Steering holds edits",
        ),
    ],
)
def test_a_bad_steering_is_refused_before_any_pass(llama, forwards, pairs: Any, error: Any, words: str) -> None:
    resolve(llama.model, ["resid_post", "z"], edit=True)
    with forwards(llama) as calls, pytest.raises(error, match=words):
        generate(llama.model, ["The sky", "A"], pairs, max_new_tokens=2, progress=False)
    assert calls == []


# ---- streaming


def test_streamed_pieces_are_the_response_as_it_grows(llama) -> None:
    steering, _ = edit_and_change(llama, "resid_post", "generated", Add)
    whole = generate(llama.model, ["Why"], steering, max_new_tokens=8, progress=False)["response"][0]
    pieces = list(stream(llama.model, "Why", steering, max_new_tokens=8))
    assert "".join(pieces) == whole
    sampled = generate(llama.model, ["Why"], max_new_tokens=8, temperature=1.0, seed=3, progress=False)
    assert "".join(stream(llama.model, "Why", max_new_tokens=8, temperature=1.0, seed=3)) == sampled["response"][0]


def test_leaving_a_stream_early_stops_the_generation_and_frees_the_model(llama, forwards) -> None:
    before = oracles.hooks_on(llama.hf)
    with forwards(llama) as calls:
        for _ in stream(llama.model, "Why", [("blocks.1.hook_resid_post", Add(random(32)))], max_new_tokens=100):
            break
        made = len(calls)
        assert made < 100
    assert oracles.hooks_on(llama.hf) == before
    assert tokens(llama, ["A"]) == tokens(llama, ["A"])


def test_an_error_while_streaming_arrives_where_the_pieces_are_read(llama) -> None:
    bad = Steering([("blocks.1.hook_resid_post", Add(random(32), torch.ones(3)))])
    with pytest.raises(ValueError, match="3"):
        list(stream(llama.model, "Why", bad, max_new_tokens=4))
    with pytest.raises(ValueError, match="prompt 0 has 206 tokens"):
        list(stream(llama.model, "x" * 200, max_new_tokens=4, prompt_format="Say: {prompt}"))


def test_streaming_inside_an_open_steering_is_refused_and_does_not_hang(llama) -> None:
    """The pieces come from another thread, which would wait for this one's steering to end."""
    answers: list[Any] = []

    def work() -> None:
        with Steering([("blocks.1.hook_resid_post", Add(random(32)))]).on(llama.model):
            try:
                answers.append(list(stream(llama.model, "Why", max_new_tokens=4)))
            except RuntimeError as error:
                answers.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert "pass the steering to stream" in answers[0]


def test_the_public_names_are_there() -> None:
    assert {"generate", "stream", "per_row", "capture", "log_probs"} <= set(lensteer.__all__)
