"""Every distillation loss, written out in NumPy float64 from its definition: with loops, and nothing shared with the package."""

import itertools

import numpy as np

IGNORED = 255


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def kl(student, teacher, axis):
    p, q = softmax(teacher, axis), softmax(student, axis)
    return (p * (np.log(p) - np.log(q))).sum(axis)


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def huber(x):
    return np.where(np.abs(x) < 1, 0.5 * x * x, np.abs(x) - 0.5)


def valid_pixels(label):
    return [tuple(index) for index in np.argwhere(label != IGNORED)]


def pixelwise_kl(s, t, y, temperature=1.0):
    return temperature**2 * kl(s / temperature, t / temperature, axis=1)[y != IGNORED].mean()


def kl_loss(s, t, y, temperature=1.0):
    return pixelwise_kl(s, t, y, temperature) / s.shape[1]


def standardized_kl(s, t, y, temperature=2.0):
    z = [(x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in (s, t)]
    return pixelwise_kl(*z, y, temperature)


def channelwise(s, t, y, temperature=4.0):
    images, channels = s.shape[:2]
    total = 0.0
    for i in range(images):
        valid = y[i] != IGNORED
        for c in range(channels):
            if valid.any():
                total += kl(s[i, c][valid] / temperature, t[i, c][valid] / temperature, axis=0)
    return temperature**2 * total / (images * channels)


def rowwise(s, t, y, temperature=1.0):
    p, q = softmax(t / temperature, -1), softmax(s / temperature, -1)
    return (p * (np.log(p) - np.log(q))).mean()


def dist(s, t, y, beta=1.0, gamma=1.0, temperature=1.0):
    p, q = (np.moveaxis(softmax(x / temperature, 1), 1, -1)[y != IGNORED] for x in (s, t))  # [pixels, classes]
    over_classes = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    over_pixels = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * over_classes + gamma * over_pixels)


def dkd(s, t, y, alpha=1.0, beta=0.5, temperature=1.0):
    total = []
    for n, h, w in valid_pixels(y):
        target = y[n, h, w]
        p, q = softmax(t[n, :, h, w] / temperature, 0), softmax(s[n, :, h, w] / temperature, 0)
        b_t, b_s = np.array([p[target], 1 - p[target]]), np.array([q[target], 1 - q[target]])
        p, q = np.delete(p, target), np.delete(q, target)
        p, q = p / p.sum(), q / q.sum()
        total.append(alpha * (b_t * np.log(b_t / b_s)).sum() + beta * (p * np.log(p / q)).sum())
    return temperature**2 * np.mean(total)


def band(y, radius):
    found = np.zeros(y.shape, bool)
    for n, h, w in valid_pixels(y):
        rows, columns = slice(max(h - radius, 0), h + radius + 1), slice(max(w - radius, 0), w + radius + 1)
        near = y[n, rows, columns]
        found[n, h, w] = len(set(near[near != IGNORED])) > 1
    return found


def bpkd(s, t, y, edge=50.0, body=20.0, radius=3):
    on_edge = band(y, radius)
    e = np.where(on_edge, 0, IGNORED)
    b = np.where((y != IGNORED) & ~on_edge, 0, IGNORED)
    return edge * (pixelwise_kl(s, t, e) if on_edge.any() else 0) + body * channelwise(s, t, b, 1.0)


def dml(s, t, y):
    return pixelwise_kl(s, t, y) + pixelwise_kl(t, s, y)


def hint(s, t, y, norm=np.square):
    return np.moveaxis(norm(s - t), 1, -1)[y != IGNORED].mean()


def normalized_feature(s, t, y):
    total, count = 0.0, 0
    for n, c in np.ndindex(s.shape[:2]):
        valid = y[n] != IGNORED
        a, b = s[n, c][valid], t[n, c][valid]
        total += np.square(np.subtract(*((x - x.mean()) / np.sqrt(x.var() + 1e-5) for x in (a, b)))).sum()
        count += valid.sum()
    return total / count


def attention(s, t, y):
    total = 0.0
    for n in range(len(s)):
        a, b = (np.square(x[n]).mean(0)[y[n] != IGNORED] for x in (s, t))
        total += np.square(a / np.linalg.norm(a) - b / np.linalg.norm(b)).sum()
    return total / len(s)


def pair_wise(s, t, y, grid=2):
    """On maps whose sides are multiples of the grid."""
    total = []
    for n in range(len(s)):
        cells = []
        for rows, columns in itertools.product(*(np.split(np.arange(k), grid) for k in s.shape[2:])):
            valid = y[n][np.ix_(rows, columns)] != IGNORED
            if valid.any():
                cells.append([x[n][:, rows][:, :, columns][:, valid].mean(1) for x in (s, t)])
        for (s_a, t_a), (s_b, t_b) in itertools.product(cells, cells):
            total.append((cosine(s_a, s_b) - cosine(t_a, t_b)) ** 2)
    return np.mean(total)


def ifvd(s, t, y):
    total = []
    for n, h, w in valid_pixels(y):
        own = y[n] == y[n, h, w]
        c_s, c_t = (cosine(x[n, :, h, w], x[n][:, own].mean(1)) for x in (s, t))
        total.append((c_s - c_t) ** 2)
    return np.mean(total)


def rkd(s, t, y, distance=25.0, angle=50.0):
    def relations(x):
        x = np.where((y != IGNORED)[:, None], x, 0).reshape(len(x), -1)
        d = np.array([[np.linalg.norm(a - b) for a in x] for b in x])
        d = d / d[d > 0].mean()
        cosines = np.zeros([len(x)] * 3)
        for i, j, k in np.ndindex(cosines.shape):
            if i not in (j, k):
                cosines[i, j, k] = cosine(x[j] - x[i], x[k] - x[i])
        return d, cosines

    (d_s, c_s), (d_t, c_t) = relations(s), relations(t)
    return distance * huber(d_s - d_t).mean() + angle * huber(c_s - c_t).mean()


# name: (loss, its arguments, the formula). "uses labels" and what else holds is in the tests.
def pooled(s, t, y):
    def cells(x):
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        return x.reshape(*x.shape[:2], 2, rows, 2, columns).mean(axis=(3, 5))

    return ((cells(s) - cells(t)) ** 2).mean()


CASES = {
    "KLLoss": ({}, kl_loss),
    "KLLoss t=4": ({"temperature": 4.0}, lambda s, t, y: kl_loss(s, t, y, 4.0)),
    "PixelwiseKLLoss": ({}, pixelwise_kl),
    "PixelwiseKLLoss t=4": ({"temperature": 4.0}, lambda s, t, y: pixelwise_kl(s, t, y, 4.0)),
    "PixelwiseKLLoss standardized": ({"temperature": 2.0, "standardize": True}, standardized_kl),
    "SegChannelwiseLoss": ({}, channelwise),
    "SegChannelwiseLoss t=1": ({"temperature": 1.0}, lambda s, t, y: channelwise(s, t, y, 1.0)),
    "SegChannelwiseLoss tutorial": ({"compat": "paddleslim"}, rowwise),
    "DISTLoss": ({}, dist),
    "DISTLoss t=2": ({"beta": 2.0, "gamma": 0.5, "temperature": 2.0}, lambda s, t, y: dist(s, t, y, 2.0, 0.5, 2.0)),
    "DKDLoss": ({}, dkd),
    "DKDLoss t=4": ({"beta": 8.0, "temperature": 4.0}, lambda s, t, y: dkd(s, t, y, 1.0, 8.0, 4.0)),
    "BPKDLoss": ({"radius": 1}, lambda s, t, y: bpkd(s, t, y, radius=1)),
    "DMLLoss": ({}, dml),
    "HintLoss": ({}, hint),
    "HintLoss l1": ({"norm": "l1"}, lambda s, t, y: hint(s, t, y, np.abs)),
    "HintLoss smooth_l1": ({"norm": "smooth_l1"}, lambda s, t, y: hint(s, t, y, huber)),
    "NormalizedFeatureLoss": ({}, normalized_feature),
    "AttentionTransferLoss": ({}, attention),
    "SegPairWiseLoss": ({}, pair_wise),
    "SegPairWiseLoss tutorial": ({"compat": "paddleslim"}, pooled),
    "IFVDLoss": ({}, ifvd),
    "RKDLoss": ({}, rkd),
}
