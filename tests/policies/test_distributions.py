"""Distributions: equal to torch's, sampled with the right frequencies from a given generator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import distributions as reference

from upslope.policies.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    ExploringGaussian,
    Joint,
    SquashedGaussian,
)

Z = 4.5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- categorical ---------------------------------------------------------------------------------
def test_categorical_is_torchs():
    logits = 3 * torch.randn(50, 7, generator=seeded(0))
    action = torch.randint(7, (50,), generator=seeded(1))
    ours, theirs = Categorical(logits), reference.Categorical(logits=logits)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode)


def test_categorical_gradients_are_torchs():
    logits = torch.randn(20, 4, generator=seeded(2), dtype=torch.float64)
    action = torch.randint(4, (20,), generator=seeded(3))
    found = []
    for kind in (Categorical, lambda x: reference.Categorical(logits=x)):
        leaf = logits.clone().requires_grad_()
        distribution = kind(leaf)
        (distribution.log_prob(action) + 2 * distribution.entropy()).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


def test_categorical_by_hand():
    distribution = Categorical(torch.tensor([[0.0, math.log(3.0)]]))
    assert distribution.log_prob(torch.tensor([1])).item() == pytest.approx(math.log(0.75))
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert distribution.entropy().item() == pytest.approx(expected)


def test_categorical_frequencies():
    n, logits = 40_000, torch.tensor([1.0, -2.0, 0.0, 0.5, -6.0])
    p = logits.softmax(-1).double()
    drawn = Categorical(logits.expand(n, -1)).sample(seeded(4))
    assert drawn.shape == (n,)
    assert drawn.dtype == torch.int64
    share = torch.bincount(drawn, minlength=5).double() / n
    z = (share - p) / (p * (1 - p) / n).sqrt()
    assert z.abs().max() < Z


def test_categorical_rows_are_independent():
    """Two rows of one draw: the joint frequencies are the products."""
    n, logits = 20_000, torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    first, second = Categorical(logits.repeat(n, 1)).sample(seeded(5)).view(n, 2).unbind(1)
    p = torch.sigmoid(torch.tensor(1.0)).double()
    both = (first * (1 - second)).double().mean()
    assert abs(both - p * p) < Z * math.sqrt(p * p * (1 - p * p) / n)


def test_categorical_far_logits_are_defined():
    logits = torch.tensor([[0.0, -1000.0], [1000.0, 0.0]], requires_grad=True)
    distribution = Categorical(logits)
    assert torch.equal(distribution.sample(seeded(6)), torch.tensor([0, 0]))
    assert distribution.log_prob(torch.tensor([1, 1])).tolist() == [-1000, -1000]
    distribution.entropy().sum().backward()
    assert torch.equal(distribution.entropy().detach(), torch.zeros(2))
    assert torch.equal(logits.grad, torch.zeros(2, 2))


# ---- diagonal Gaussian ---------------------------------------------------------------------------
@pytest.mark.parametrize("per_row", [False, True])
def test_gaussian_is_torchs(per_row):
    mean = torch.randn(30, 3, generator=seeded(0))
    log_std = torch.randn(*((30, 3) if per_row else (3,)), generator=seeded(1))
    action = torch.randn(30, 3, generator=seeded(2))
    ours = DiagonalGaussian(mean, log_std)
    theirs = reference.Independent(reference.Normal(mean, log_std.exp().expand(30, 3)), 1)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), mean)


def test_gaussian_by_hand():
    """At the mean of a unit normal in two dimensions the density is 1 / (2 pi)."""
    distribution = DiagonalGaussian(torch.zeros(1, 2), torch.zeros(2))
    assert distribution.log_prob(torch.zeros(1, 2)).item() == pytest.approx(-math.log(2 * math.pi))
    assert distribution.entropy().item() == pytest.approx(math.log(2 * math.pi * math.e))


def test_gaussian_frequencies():
    n = 40_000
    mean, log_std = torch.tensor([1.0, -3.0]), torch.tensor([0.0, 1.0])
    drawn = DiagonalGaussian(mean.expand(n, 2), log_std).sample(seeded(3))
    assert drawn.shape == (n, 2)
    z = (drawn.double() - mean) / log_std.exp()
    assert (z.mean(0) * math.sqrt(n)).abs().max() < Z
    assert ((z.square().mean(0) - 1) * math.sqrt(n / 2)).abs().max() < Z
    assert abs(z.prod(1).mean() * math.sqrt(n)) < Z  # the dimensions are independent


def test_gaussian_log_prob_far_away_is_finite():
    distribution = DiagonalGaussian(torch.zeros(2, 1), torch.tensor([-10.0]))
    assert distribution.log_prob(torch.tensor([[1.0], [1e3]])).isfinite().all()


# ---- masks ---------------------------------------------------------------------------------------
ROWS = st.integers(1, 5).flatmap(
    lambda n: st.lists(
        st.tuples(st.sampled_from([-3.0, 0.0, 0.7, 2.5]), st.booleans()), min_size=n, max_size=n
    ).filter(lambda row: any(legal for _, legal in row))
)


@given(ROWS)
@settings(max_examples=100)
def test_masked_is_the_categorical_over_the_legal_ones(row):
    logits = torch.tensor([[value for value, _ in row]], dtype=torch.float64)
    legal = torch.tensor([[allowed for _, allowed in row]])
    ours = Categorical(logits, legal)
    theirs = reference.Categorical(logits=logits[legal].unsqueeze(0))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    action = torch.arange(legal.sum())
    found = ours.log_probs[legal].unsqueeze(0)
    torch.testing.assert_close(found[0], theirs.log_prob(action))
    assert torch.nonzero(legal[0])[theirs.mode][0, 0] == ours.mode()
    illegal = torch.nonzero(~legal[0])[:, 0]
    assert (ours.log_probs[0, illegal] == -torch.inf).all()
    uniform = Categorical(torch.zeros_like(logits), legal)
    torch.testing.assert_close(
        ours.kl(uniform), legal.sum().double().log().unsqueeze(0) - ours.entropy()
    )


def test_masked_actions_are_never_drawn():
    """In 10^6 draws, also where their logits are the largest and all legal ones are unlikely."""
    n = 250_000
    logits = torch.tensor([[0.0, 1, 2, 3], [60, 0, 0, 80], [-90, 1e30, 0, -80], [0, 0, 0, 1e4]])
    legal = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0]]).bool()
    drawn = Categorical(logits.expand(n, 4, 4), legal.expand(n, 4, 4)).sample(seeded(9))
    counts = torch.stack([torch.bincount(row, minlength=4) for row in drawn.T])
    assert (counts[~legal] == 0).all()
    p = torch.sigmoid(torch.tensor(2.0)).item()
    assert abs(counts[0, 2] / n - p) < Z * math.sqrt(p * (1 - p) / n)
    assert abs(counts[1, 1] / n - 0.5) < Z * 0.5 / math.sqrt(n)
    assert counts[3, 1] == n


def test_masked_bits_are_never_drawn():
    n = 350_000
    legal = torch.tensor([[True, False], [False, True], [True, True]])
    kind = Bernoulli(torch.tensor([50.0, -50.0, 0.0]).expand(n, 3), legal.expand(n, 3, 2))
    drawn = kind.sample(seeded(10))
    assert drawn[:, 0].sum() == 0
    assert drawn[:, 1].sum() == n
    assert abs(drawn[:, 2].float().mean() - 0.5) < Z * 0.5 / math.sqrt(n)


FAR = [0.0, 30.0, 1e30, -1e30, math.inf, -math.inf]


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("legal", [(1, 0, 1, 0), (0, 1, 0, 0)])
@pytest.mark.parametrize("quantity", ["log_prob", "entropy", "kl", "kl to it"])
def test_the_gradient_of_what_is_masked_is_exactly_0(far, legal, quantity):
    mask = torch.tensor([legal]).bool()
    logits = torch.tensor([[0.3, -0.2, 1.0, 0.5]]).masked_fill(~mask, far).requires_grad_()
    masked = Categorical(logits, mask)
    other = Categorical(torch.tensor([[1.0, 2.0, -1.0, 0.0]]), mask)
    {
        "log_prob": lambda: masked.log_prob(mask.int().argmax(1)),
        "entropy": masked.entropy,
        "kl": lambda: masked.kl(other),
        "kl to it": lambda: other.kl(masked),
    }[quantity]().sum().backward()
    assert (logits.grad[~mask] == 0).all()
    assert logits.grad.isfinite().all()
    assert (logits.grad[mask] == 0).all() == (sum(legal) == 1)


LEFT = torch.tensor([[True, False]])


def test_kl_to_what_excludes_an_action_is_infinite():
    free, bound = Categorical(torch.zeros(1, 2)), Categorical(torch.zeros(1, 2), LEFT)
    assert free.kl(bound).item() == math.inf
    assert bound.kl(free).item() == pytest.approx(math.log(2))
    assert bound.kl(bound).item() == 0


# ---- bits ----------------------------------------------------------------------------------------
def test_bernoulli_is_torchs():
    logits, others = torch.randn(2, 40, 3, generator=seeded(0), dtype=torch.float64).unbind(0)
    ours, theirs = Bernoulli(logits), reference.Bernoulli(logits=logits)
    drawn = ours.sample(seeded(1))
    assert (drawn.shape, drawn.dtype) == ((40, 3), torch.int64)
    torch.testing.assert_close(ours.log_prob(drawn), theirs.log_prob(drawn.double()).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    assert torch.equal(ours.mode(), (logits > 0).long())
    wanted = reference.kl_divergence(theirs, reference.Bernoulli(logits=others)).sum(-1)
    torch.testing.assert_close(ours.kl(Bernoulli(others)), wanted)


def test_a_bit_of_one_legal_value_is_certain():
    legal = torch.tensor([[[True, False], [True, True]]])
    bits = Bernoulli(torch.tensor([[9.0, 0.0]]), legal)
    assert bits.mode()[0, 0] == 0
    assert bits.entropy().item() == pytest.approx(math.log(2))
    assert bits.log_prob(torch.tensor([[0, 1]])).item() == pytest.approx(-math.log(2))
    assert bits.log_prob(torch.tensor([[1, 1]])).item() == -math.inf


# ---- divergences ---------------------------------------------------------------------------------
def test_kl_is_torchs():
    a, b = 2 * torch.randn(2, 30, 4, generator=seeded(0), dtype=torch.float64)
    s, t = torch.randn(2, 30, 4, generator=seeded(1), dtype=torch.float64)
    wanted = reference.kl_divergence(
        reference.Categorical(logits=a), reference.Categorical(logits=b)
    )
    torch.testing.assert_close(Categorical(a).kl(Categorical(b)), wanted)
    wanted = reference.kl_divergence(
        reference.Normal(a, s.exp()), reference.Normal(b, t.exp())
    ).sum(-1)
    torch.testing.assert_close(DiagonalGaussian(a, s).kl(DiagonalGaussian(b, t)), wanted)
    # what one invertible map takes both to is as far apart
    torch.testing.assert_close(SquashedGaussian(a, s).kl(SquashedGaussian(b, t)), wanted)


# ---- squashed Gaussian ---------------------------------------------------------------------------
def test_squashed_is_torchs_transformed_normal():
    mean, log_std = torch.randn(2, 50, 2, generator=seeded(0), dtype=torch.float64)
    ours = SquashedGaussian(mean, log_std)
    theirs = reference.TransformedDistribution(
        reference.Normal(mean, log_std.exp()), reference.TanhTransform(cache_size=1)
    )
    u = ours.sample(seeded(1))
    torch.testing.assert_close(ours.log_prob(u), theirs.log_prob(u.tanh()).sum(-1))
    assert torch.equal(ours.mode(), mean)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 0.5])
def test_squashed_density_integrates_to_1_over_actions(mean):
    def density(a: float) -> float:
        u = torch.tensor([[math.atanh(a)]], dtype=torch.float64)
        kind = SquashedGaussian(torch.full_like(u, mean), torch.tensor([-0.7], dtype=u.dtype))
        return kind.log_prob(u).exp().item()

    total = integrate.quad(density, -1 + 1e-12, 1 - 1e-12, points=[math.tanh(mean)])[0]
    assert total == pytest.approx(1, abs=1e-6)


def test_squashed_log_prob_at_the_bounds():
    """tanh u is 1 in float32 from u = 9.1 on; the log-probability keeps what is lost there."""
    u = torch.tensor([-20.0, -12, -9.5, -5, 0, 5, 9.5, 12, 20])
    assert u.tanh()[[0, 1, -2, -1]].abs().tolist() == [1, 1, 1, 1]
    kind = SquashedGaussian(torch.full((9, 1), 0.5), torch.tensor([1.0]))
    exact = torch.from_numpy(stats.norm.logpdf(u.double(), 0.5, math.e)) - (
        2 * (math.log(2) - u.double().abs() - torch.log1p(torch.exp(-2 * u.double().abs())))
    )
    torch.testing.assert_close(kind.log_prob(u.unsqueeze(1)).double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("u", [-20.0, -9.1, 0.0, 9.1, 20.0, 80.0])
def test_squashed_gradients_at_the_bounds(u):
    """d log pi / d mean = (u - mean) / sigma^2: the map does not depend on the parameters."""
    mean = torch.tensor([[0.5]], requires_grad=True)
    log_std = torch.tensor([0.0], requires_grad=True)
    kind = SquashedGaussian(mean, log_std)
    (kind.log_prob(torch.tensor([[u]])) + 0 * kind.entropy()).sum().backward()
    assert mean.grad.item() == pytest.approx(u - 0.5)
    assert log_std.grad.item() == pytest.approx((u - 0.5) ** 2 - 1)


@pytest.mark.parametrize(
    ("log_std", "off"), [(-5, 1e-6), (-1, 1e-6), (0, 1e-5), (1, 2e-3), (2, 0.1)]
)
@pytest.mark.parametrize("mean", [0.0, -1.0, 3.0])
def test_squashed_entropy_is_the_integral(mean, log_std, off):
    sigma = math.exp(log_std)

    def slope(x: float) -> float:
        u = mean + sigma * x
        return stats.norm.pdf(x) * 2 * (math.log(2) - u - math.log1p(math.exp(-2 * u)))

    exact = stats.norm.entropy(mean, sigma) + integrate.quad(slope, -12, 12, limit=200)[0]
    kind = SquashedGaussian(
        torch.tensor([[mean]], dtype=torch.float64), torch.tensor([log_std], dtype=torch.float64)
    )
    assert kind.entropy().item() == pytest.approx(exact, abs=off)


def test_squashed_entropy_is_minus_the_mean_log_prob_and_sums_over_dimensions():
    mean, log_std = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([-0.5, 0.2, -1.0])
    kind = SquashedGaussian(mean.expand(50_000, 3), log_std)
    surprise = -kind.log_prob(kind.sample(seeded(3))).double()
    error = surprise.std() / math.sqrt(len(surprise))
    assert abs(surprise.mean() - kind.entropy()[0]) < Z * error
    one_by_one = [SquashedGaussian(mean[None, [i]], log_std[[i]]).entropy() for i in range(3)]
    torch.testing.assert_close(kind.entropy()[:1], sum(one_by_one))


# ---- state-dependent exploration -----------------------------------------------------------------
def test_exploring_variance_is_what_many_matrices_give():
    n, features = 100_000, torch.tensor([[1.0, -2.0, 0.5]])
    log_std = torch.tensor([[-1.0, 0.3], [0.0, -0.5], [0.2, 0.4]])
    matrix = torch.randn(n, 3, 2, generator=seeded(0)) * log_std.exp()
    mean = torch.tensor([0.7, -4.0])
    kind = ExploringGaussian(mean.expand(n, 2), log_std, features.expand(n, 3), matrix)
    drawn = kind.sample(seeded(1)).double()
    for z in (
        (drawn - mean) / kind.log_std.exp(),
        (ExploringGaussian(mean.expand(n, 2), log_std, features.expand(n, 3)).sample(seeded(2)))
        .double()
        .sub(mean)
        .div(kind.log_std.exp()),
    ):
        assert (z.mean(0) * math.sqrt(n)).abs().max() < Z
        assert ((z.square().mean(0) - 1) * math.sqrt(n / 2)).abs().max() < Z
    by_hand = features.square() @ torch.exp(2 * log_std)
    torch.testing.assert_close(kind.log_std[:1].exp() ** 2, by_hand, rtol=1e-5, atol=2e-6)
    normal = DiagonalGaussian(kind.mean, kind.log_std)
    torch.testing.assert_close(kind.log_prob(drawn.float()), normal.log_prob(drawn.float()))
    torch.testing.assert_close(kind.entropy(), normal.entropy())


def test_one_matrix_gives_the_same_noise_for_the_same_features():
    features = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0]])
    matrix = torch.randn(1, 2, 1, generator=seeded(0)).expand(3, 2, 1)
    mean = torch.tensor([[0.0], [5.0], [0.0]])
    kind = ExploringGaussian(mean, torch.zeros(2, 1), features, matrix)
    first, again = kind.sample(seeded(1)), kind.sample(seeded(2))
    assert torch.equal(first, again)  # nothing is drawn
    noise = first - mean
    torch.testing.assert_close(noise[0], noise[1])
    torch.testing.assert_close(noise[2], 2 * noise[0])


def test_exploration_does_not_shape_the_features():
    features = torch.ones(4, 3, requires_grad=True)
    log_std = torch.zeros(3, 2, requires_grad=True)
    kind = ExploringGaussian(torch.zeros(4, 2), log_std, features)
    (kind.log_prob(torch.ones(4, 2)) + kind.entropy()).sum().backward()
    assert features.grad is None
    assert (log_std.grad != 0).all()
    still = ExploringGaussian(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, 3))
    assert still.log_prob(torch.zeros(1, 2)).isfinite().all()  # no features, hardly any noise


# ---- joint ---------------------------------------------------------------------------------------
def hybrid(shift: float = 0.0, masked: bool = False) -> tuple[Joint, list]:
    logits = torch.randn(6, 4, generator=seeded(0)) + shift * torch.arange(4)
    legal = torch.tensor([[True, False, True, True]]).expand(6, 4) if masked else None
    parts = [
        DiagonalGaussian(torch.randn(6, 2, generator=seeded(1)) + shift, torch.tensor([0.1, -1])),
        Categorical(logits, legal),
        Bernoulli(logits[:, :3]),
        SquashedGaussian(logits[:, 1:2], torch.tensor([shift])),
    ]
    return Joint(parts, [2, None, 3, 1]), parts


@pytest.mark.parametrize("masked", [False, True])
def test_joint_is_the_sum_of_its_parts(masked):
    joint, parts = hybrid(masked=masked)
    other, others = hybrid(0.5, masked)
    drawn = joint.sample(seeded(2))
    assert (drawn.shape, drawn.dtype) == ((6, 7), torch.float32)
    pieces = [drawn[:, :2], drawn[:, 2].long(), drawn[:, 3:6].long(), drawn[:, 6:]]
    pairs = list(zip(parts, pieces, strict=True))
    wanted = sum(part.log_prob(piece) for part, piece in pairs)
    torch.testing.assert_close(joint.log_prob(drawn), wanted)
    torch.testing.assert_close(joint.entropy(), sum(part.entropy() for part in parts))
    apart = [part.kl(like) for part, like in zip(parts, others, strict=True)]
    assert all((kl > 0).all() for kl in apart)
    torch.testing.assert_close(joint.kl(other), sum(apart))
    torch.testing.assert_close(joint.kl(joint), torch.zeros(6))
    columns = torch.cat([p.mode().float().view(6, -1) for p in parts], dim=1)
    assert torch.equal(joint.mode(), columns)


def test_joint_draws_one_part_after_the_other():
    joint, parts = hybrid()
    one_by_one = seeded(3)
    columns = [part.sample(one_by_one).float().view(6, -1) for part in parts]
    assert torch.equal(joint.sample(seeded(3)), torch.cat(columns, dim=1))


def test_joint_of_whole_numbers_is_whole():
    parts = [Categorical(torch.zeros(5, n)) for n in (2, 3)]
    joint = Joint(parts, [None, None], torch.int64)
    assert joint.sample(seeded(0)).dtype == joint.mode().dtype == torch.int64
    torch.testing.assert_close(joint.log_prob(joint.mode()), torch.full((5,), -math.log(6)))


# ---- generators ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "distribution",
    [
        Categorical(torch.zeros(100, 9)),
        Bernoulli(torch.zeros(100, 3)),
        DiagonalGaussian(torch.zeros(100, 2), torch.zeros(2)),
        Joint([Categorical(torch.zeros(100, 9)), Bernoulli(torch.zeros(100, 3))], [None, 3]),
    ],
)
def test_only_the_given_generator_is_drawn_from(distribution):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = distribution.sample(seeded(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(distribution.sample(seeded(7)), first)
    assert not torch.equal(distribution.sample(seeded(8)), first)
