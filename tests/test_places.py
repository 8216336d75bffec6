"A prompt in any place, with or without a chat template: the engine against one pass over the same ids, everywhere."

from os.path import commonprefix
from types import SimpleNamespace

import pytest
import torch

from hpt_nb.places import Placed, placing
from hpt_nb.scoring import (
    PrefixScorer,
    arrange,
    count_joins,
    label_ids,
    label_logprobs,
    label_logprobs_many,
    plain_logits,
    prefix_embeddings,
    run_losses,
    text_ids,
    texts_cut,
)
from hpt_nb.store import InputError
from hpt_nb.tasks import task_format
from tiny import ARCHS, tiny_lm

PLACES = ["before", "between", "after", "Q: {text} {prompt} A:", "Sum up: {prompt} Text: {text} So"]
TEXTS = ["good", "a rather longer text about the film and the story", "no", "It was a bad movie, a terrible plot"]
PROMPT = " the film"
CHAT = (
    "{% for m in messages %}<|turn|>{{m.role}}\n{{m.content}}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def task_of(**kw):
    return SimpleNamespace(
        **{**dict(labels=(" great", " bad", " film"), suffix=" It was", max_text_tokens=32, strip=True), **kw}
    )


def chat_lm(arch, template=CHAT, **kw):
    "A tiny model whose tokenizer has a chat template with control tokens of its own."
    lm = tiny_lm(arch, **kw)
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    lm.model.resize_token_embeddings(max(len(lm.tokenizer), lm.n_rows), mean_resizing=False)
    lm.tokenizer.chat_template = template
    return type(lm).wrap(lm.model, lm.tokenizer, lm.name)


def whole_ids(lm, task, text, prompt=PROMPT):
    "Every id of an input, put together here."
    ids = lm.encode(text.strip())[: task.max_text_tokens]
    form = task_format(task, bool(lm.bos_ids))
    return placing(lm, task, form.ends(lm)).whole(lm.bos_ids, lm.encode(prompt), ids)


@torch.no_grad()
def plainly(lm, ids, labels):
    return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, labels].float()


CASES = (
    [task_of(prompt_at=p) for p in PLACES]
    + [task_of(prompt_at=p, chat=True) for p in ("before", "after", "{text}\n{prompt}")]
    + [
        task_of(prompt_at="before", chat=True, system="You judge. {prompt}"),
        task_of(prompt_at="between", chat=True, system="You judge."),
    ]
)


@pytest.mark.parametrize("arch", ARCHS)
def test_logits_equal_the_plain_pass_in_every_place(arch):
    lm = chat_lm(arch)
    for task in CASES:
        labels = label_ids(lm, task, remarks=False)
        want = torch.stack([plainly(lm, whole_ids(lm, task, t), labels) for t in TEXTS])
        seqs, prefix = text_ids(lm, task, TEXTS), prefix_embeddings(lm, PROMPT)
        with torch.no_grad():
            assert (plain_logits(lm, labels, prefix, seqs) - want).abs().max() < 1e-4
        for way, max_tokens in (("packed", None), ("packed", 70), ("padded", None)):
            got = PrefixScorer(lm, labels, way, max_tokens).logits(prefix, seqs)
            assert (got - want).abs().max() < 1e-4, (vars(task), way, max_tokens)
        assert (label_logprobs(lm, task, TEXTS, PROMPT) - want.log_softmax(-1)).abs().max() < 1e-4


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_equal_those_of_the_plain_pass_in_every_place(arch):
    lm = chat_lm(arch)
    for task in CASES:
        labels, seqs = label_ids(lm, task, remarks=False), text_ids(lm, task, TEXTS) * 2
        prefix = torch.cat([prefix_embeddings(lm, PROMPT), prefix_embeddings(lm, lm.encode(PROMPT)[::-1])]).float()
        runs, targets = [0] * 4 + [1] * 4, [0, 1, 2, 0] * 2
        leaf = prefix.clone().requires_grad_()
        each = torch.nn.functional.cross_entropy(
            plain_logits(lm, labels, leaf, seqs, runs), torch.tensor(targets), reduction="none"
        )
        (want,) = torch.autograd.grad(each.sum() / 4, leaf)
        if (
            not want[:, len(lm.bos_ids) :].abs().max() > 1e-4
        ):  # its toy looks back fewer tokens than lie between the label and the prompt
            assert arch == "mistral"
            with pytest.raises(InputError, match="does not see the prompt"):
                PrefixScorer(lm, labels, "packed").loss_and_grad(prefix, seqs, targets, runs)
            continue
        for way in ("packed", "padded"):
            loss, grad = PrefixScorer(lm, labels, way).loss_and_grad(prefix, seqs, targets, runs)
            assert (loss - each.detach().view(2, 4).mean(1)).abs().max() < 1e-4, (vars(task), way)
            assert grad.shape == prefix.shape and (grad - want).abs().max() < 1e-4 * max(1, want.abs().max()), (
                vars(task),
                way,
            )


def test_the_other_losses_go_the_same_way_in_every_place():
    lm = chat_lm("llama")
    for task in CASES:
        labels, seqs = label_ids(lm, task, remarks=False), text_ids(lm, task, TEXTS)
        prefix, plain, fast = (
            prefix_embeddings(lm, PROMPT).float(),
            PrefixScorer(lm, label_ids(lm, task, remarks=False), "plain"),
            PrefixScorer(lm, labels),
        )
        for objective in ("centred", "vocabulary"):
            (a, ga), (b, gb) = (s.loss_and_grad(prefix, seqs, [0, 1, 2, 0], objective=objective) for s in (plain, fast))
            assert (a - b).abs().max() < 1e-4 and (ga - gb).abs().max() < 1e-4 * max(1, ga.abs().max()), (
                vars(task),
                objective,
            )
            one = run_losses(fast, prefix, seqs, [0, 1, 2, 0], [0] * 4, objective)
            assert (one - a).abs().max() < 1e-4


def test_many_prompts_equal_each_alone_in_every_place():
    lm, prompts = chat_lm("gemma3"), [None, " the film", [30, 31], " good", ""]
    for task in CASES:
        want = torch.stack([label_logprobs(lm, task, TEXTS, p) for p in prompts])
        for max_tokens in (None, 60):
            assert (label_logprobs_many(lm, task, TEXTS, prompts, max_tokens) - want).abs().max() < 1e-4


def test_a_shared_head_is_read_once_and_what_cannot_be_shared_is_said(capsys):
    lm = chat_lm("llama")
    seqs = text_ids(lm, task_of(chat=True), TEXTS * 4)
    prefix = prefix_embeddings(lm, PROMPT)
    wide, rest, place = arrange(lm, prefix, seqs)
    assert place[1] and wide.shape[1] == prefix.shape[1] + place[1]
    assert "no prefix is shared" not in capsys.readouterr().err
    head, tail = place[1], len(rest[0]) - len(lm.encode(TEXTS[0]))
    scorer = PrefixScorer(lm, LABELS := label_ids(lm, task_of(), remarks=False), "packed")
    scorer.logits(prefix, seqs)
    assert scorer.tokens < 2 * (sum(map(len, rest)) + wide.shape[1])  # not the head with each text
    behind = text_ids(lm, task_of(prompt_at="after"), TEXTS)
    lm.name = "a model of its own"
    assert arrange(lm, prefix, behind)[2] == "inside"
    assert (
        "a model of its own: the prompt stands after a part that differs from text to text, so no prefix is shared"
        in capsys.readouterr().err
    )
    assert head and tail > 0 and len(LABELS) == 3


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_a_chat_head_before_texts_is_read_once(arch):
    lm = chat_lm(arch)
    task = task_of(prompt_at="between", chat=True, system="You judge what the people say of it.")
    labels, seqs = label_ids(lm, task, remarks=False), text_ids(lm, task, TEXTS * 2)
    prefix, targets = prefix_embeddings(lm, PROMPT).float(), [0, 1, 2, 0] * 2
    head, b = len(commonprefix([s[: s.at] for s in seqs])), len(lm.bos_ids)
    plain, scorer = PrefixScorer(lm, labels, "plain"), PrefixScorer(lm, labels, "packed", row_tokens=32)
    want, first, again = (x.loss_and_grad(prefix, seqs, targets) for x in (plain, scorer, scorer))
    left = sum(len(s) - head + prefix.shape[1] - b for s in seqs)
    assert head > 10 and scorer.tokens < 2 * (1.5 * left + head + b)  # the head not with each text
    for loss, grad in (first, again):
        assert (loss - want[0]).abs().max() < 1e-4
        assert (grad - want[1]).abs().max() < 1e-4 * max(1, want[1].abs().max())


def test_one_text_shares_what_stands_before_its_prompt():
    lm = tiny_lm("gpt2")
    seqs = text_ids(lm, task_of(prompt_at="between"), TEXTS[1:2])
    assert isinstance(seqs[0], Placed) and arrange(lm, prefix_embeddings(lm, PROMPT), seqs)[2] == (
        0,
        len(lm.encode(TEXTS[1])),
    )


def test_control_tokens_are_read_as_such_when_asked_or_refused():
    lm = chat_lm("llama3")
    turn = lm.tokenizer.convert_tokens_to_ids("<|turn|>")
    for task in (task_of(suffix="<|end|> It was"), task_of(prompt_at="<|turn|>{prompt}{text}")):
        with pytest.raises(
            InputError, match="a control token of .* which would be read as characters; set control = true"
        ):
            text_ids(lm, task, TEXTS)
        ids = text_ids(lm, SimpleNamespace(**vars(task), control=True), TEXTS)[0]
        assert set(ids) & {turn, lm.tokenizer.convert_tokens_to_ids("<|end|>")}
    control = task_of(control=True)
    as_ids = label_logprobs(lm, control, TEXTS, [turn] + lm.encode(" the"))
    assert torch.equal(label_logprobs(lm, control, TEXTS, "<|turn|> the"), as_ids)


def test_a_control_token_in_a_prompt_is_never_read_as_characters_in_silence(capsys):
    lm = chat_lm("llama3")
    lm.name = "another model of its own"
    label_logprobs(lm, task_of(), TEXTS, "<|turn|> the")
    assert "reads '<|turn|>' in the prompt '<|turn|> the' as characters" in capsys.readouterr().err


def test_what_a_text_says_stays_characters():
    lm = chat_lm("llama3")
    ids = text_ids(lm, task_of(chat=True), ["<|end|> good"])[0]
    assert ids.count(lm.tokenizer.convert_tokens_to_ids("<|end|>")) == 1  # the template's own


@pytest.mark.parametrize(
    "template, system, says",
    [
        (None, None, "no chat template"),
        (CHAT.replace("{{m.content}}", "{{raise_exception('no')}}"), None, "takes no user text"),
        (
            CHAT.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}"),
            "Be kind.",
            "takes no system text",
        ),
        (
            "{% if messages[0].role == 'system' %}{{raise_exception('System role not supported')}}{% endif %}" + CHAT,
            "Be kind.",
            r"takes no system text \(System role not supported\)",
        ),
    ],
)
def test_what_a_chat_template_cannot_take_is_refused(template, system, says):
    with pytest.raises(InputError, match=says):
        text_ids(chat_lm("llama3", template), task_of(chat=True, system=system), TEXTS)


def test_joins_are_counted():
    lm = tiny_lm("gpt2")
    glued = count_joins(lm, task_of(prompt_at="{text}{prompt}"), ["the", "It"], "re")
    assert glued["n"] == 2 and glued["differ"] == [
        n
        for n, t in enumerate(["the", "It"])
        if lm.encode(t + "re It was") != lm.encode(t) + lm.encode("re") + lm.encode(" It was")
    ]
    assert count_joins(lm, task_of(), ["good"], " the")["differ"] == []


def test_a_text_that_is_too_long_is_cut_and_counted_in_every_place():
    lm, long = chat_lm("qwen2"), " ".join(["a film and a story"] * 20)
    for task in CASES:
        assert texts_cut(lm, task, [long, "good"]) == 1
        made = placing(lm, task, lm.encode(task.suffix))
        assert len(text_ids(lm, task, [long])[0]) == 32 + len(made.head) + len(made.middle) + len(made.tail)


def test_bos_stands_once_however_a_template_writes_it():
    lm = chat_lm("llama", "<s>" + CHAT)
    other = chat_lm("llama")
    for one in (lm, other):
        assert whole_ids(one, task_of(chat=True), "good").count(one.tokenizer.bos_token_id) == 1
    assert whole_ids(lm, task_of(chat=True), "good") == whole_ids(other, task_of(chat=True), "good")
