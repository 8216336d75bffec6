"Toys of the chapters on tuning: random models that read single bytes, and tasks of letters. For the notebooks alone."

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hpt_nb.models import LM

SMALL = dict(intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def bytes_tokenizer(order=1, bos=False):
    "One token for each byte; with order=-1 their ids run backwards; with `bos` a <s> after them."
    ids = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())[::order])}
    tokenizer = Tokenizer(models.BPE({**ids, "<s>": 256} if bos else ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(dict(bos_token="<s>") if bos else {}))


def toy_lm(seed=0, order=1, name="toy", width=32, bos=False):
    "A random model of two layers; its matrices are enlarged, so that a prompt makes a difference."
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=257 if bos else 256, hidden_size=width, **SMALL)).eval()
    with torch.no_grad():
        for w in model.parameters():
            if w.ndim > 1:
                w.mul_(6.0)
    return LM.wrap(model, bytes_tokenizer(order, bos), name=name)


class Letters:
    "Texts and the numbers of their classes."

    def __init__(self, texts, labels):
        self.texts, self.labels = texts, labels

    def __len__(self):
        return len(self.texts)


class ToyTask:
    "The text is one letter, a or b, in various numbers; the label says which comes first."

    labels, suffix, max_text_tokens, strip, hash = ("n", "p"), " =", 16, True, "toy"
    train = Letters(["a", "b", "aa", "bb", "ab", "ba"], [0, 1, 0, 1, 0, 1])
    holdout = Letters(["aaa", "bbb", "aab", "bba"], [0, 1, 0, 1])

    def __init__(self, train=None, holdout=None):
        self.train, self.holdout = train or self.train, holdout or self.holdout

    def subset(self, split, n, seed=0):
        return getattr(self, split)


toy_task = ToyTask()


def repeated(*lengths):
    "Each letter so many times over."
    texts = [letter * n for n in lengths for letter in "ab"]
    return Letters(texts, ["ab".index(t[0]) for t in texts])
