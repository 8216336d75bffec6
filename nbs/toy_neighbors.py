"A plain, slow search for neighbours, and four tokens in two models to check by hand. Not in the package."

import math

import torch

toy_a = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
toy_b = torch.tensor([[1.0, 0], [0.5, 0.9], [0, 1], [-0.1, 0.9]])
toy_J = torch.tensor([1, 1 / 3, 1, 1])


def plain_ids(emb, k, anchors=None, include_self=True):
    "The k nearest anchors of each row, read off the full float64 matrix."
    w = emb.double()
    w = w / w.norm(dim=1, keepdim=True).clamp_min(1e-300)
    anchors = torch.arange(len(w)) if anchors is None else anchors
    cos = ((w @ w[anchors].T) * 2**40).round()
    if not include_self:
        cos[anchors, torch.arange(len(anchors))] = -math.inf
    return anchors[cos.sort(dim=1, descending=True, stable=True).indices[:, :k]]


def plain_J(embs, k, anchors=None, include_self=True):
    "J of Eqs. 5-6 with Python sets."
    sets = [[set(r) for r in plain_ids(e, k, anchors, include_self).tolist()] for e in embs]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[:i]]
    return torch.tensor([[len(x & y) / len(x | y) for x, y in zip(a, b)] for a, b in pairs]).mean(0)
