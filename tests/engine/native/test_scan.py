"""Compiled code computes what torch computes, whatever lies where in memory."""

import math
import subprocess

import pytest
import torch
from torch.nn import functional as F

from pyro_nflows.engine.native import Scan, build, compilers
from pyro_nflows.engine.tape import Tape

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


def compiled(function, inputs):
    """The function's results by compiled code, and the operations that were left to torch."""
    scan = Scan(Tape(lambda *x: list(function(*x)), inputs), 0)
    _, results = scan.run([], [x[None] for x in inputs])
    return [r[0] for r in results], [str(e.target) for e in scan.program.externs]


def check(function, inputs, externs=()):
    results, called = compiled(function, inputs)
    for got, expected in zip(results, function(*inputs), strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        tolerance = 20 * torch.finfo(got.dtype).eps if got.is_floating_point() else 0
        assert torch.allclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert sorted({name.split(".")[1] for name in called}) == sorted(externs)


X = torch.tensor([[-2.5, -0.3, 0.0, 0.4, 1.7], [3.0, -1.0, 0.2, 12.0, -40.0]])
Y = torch.tensor([[0.5, 1.5, 2.0, -0.7, 1.0], [-3.0, 0.1, 0.3, 2.0, 5.0]])

ELEMENTWISE = {
    "arithmetic": lambda x, y: [x + y, x - y, x * y, x / y, -x, 2 - x, x + 2 * y, torch.add(x, y, alpha=0.5)],
    "numbers": lambda x, y: [x * 3, x / 3, 1 / y, x - 0.1, torch.rsub(x, y, alpha=2), x + math.inf, x * math.nan],
    "powers": lambda x, y: [x**2, x**3, x.abs() ** 0.5, y**-1, y.abs() ** -0.5, y.abs() ** 1.5, y.abs() ** 0.3, 2**x],
    "exponentials": lambda x, y: [x.exp(), x.expm1(), y.abs().log(), y.abs().log1p(), x.exp2(), y.abs().log2()],
    "sigmoids": lambda x, y: [x.tanh(), x.sigmoid(), F.softplus(x), F.softplus(x, 2.0, 1.0), F.silu(x), F.relu(x)],
    "slopes": lambda x, y: [torch.ops.aten.silu_backward(y, x), torch.ops.aten.tanh_backward(y, x.tanh())],
    "circles": lambda x, y: [x.sin(), x.cos(), x.tan(), x.atan(), torch.atan2(x, y), x.sinh(), (x / 50).asin()],
    "roots": lambda x, y: [y.abs().sqrt(), y.abs().rsqrt(), x.square(), y.reciprocal(), x.abs(), x.sign(), x.sgn()],
    "rounding": lambda x, y: [x.floor(), x.ceil(), x.round(), x.trunc()],
    "gammas": lambda x, y: [y.abs().lgamma(), y.abs().digamma(), (x - 0.6).digamma(), x.erf(), x.erfc()],
    "bounds": lambda x, y: [x.clamp(-1, 1), x.clamp(min=0), x.clamp(max=0), torch.maximum(x, y), torch.minimum(x, y)],
    "comparisons": lambda x, y: [x < y, x <= 0, x > y, x >= 0.2, x == y, x != 0, (x < y) & (x > 0), ~(x < y)],
    "choices": lambda x, y: [
        torch.where(x > 0, x, y),
        torch.where(x > 0, x, -math.inf),
        x.masked_fill(y < 0, 7.0),
        torch.xlogy(y.abs(), x.abs()),
        torch.lerp(x, y, 0.3),
        torch.addcmul(x, x, y, value=0.5),
        torch.addcdiv(x, x, y, value=0.5),
        F.leaky_relu(x, 0.2),
    ],
    "types": lambda x, y: [x.to(torch.int64), (x > 0).to(x.dtype), (x > 0) * y, x.to(torch.float64), (x > 0).sum()],
    "not a number": lambda x, y: [(x / 0).isnan(), (0 * x / 0).exp(), (0 * x / 0).clamp(min=0), (x / 0).tanh()],
    "far away": lambda x, y: [(30 * x).exp(), (1e30 * x).exp(), (-1e30 * x.abs()).exp(), (1e30 * x).sigmoid()],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operations_are_torchs(name, dtype):
    check(ELEMENTWISE[name], [X.to(dtype), Y.to(dtype)])


def test_elementary_functions_are_accurate_everywhere():
    for dtype in (torch.float32, torch.float64):
        bound = math.log(torch.finfo(dtype).max)
        wide = torch.linspace(-bound, bound, 20_001, dtype=dtype)
        near = torch.linspace(-5, 5, 20_001, dtype=dtype)
        small = 10 ** torch.linspace(-37, 37, 2001, dtype=dtype)
        x = torch.cat([wide, near, small, -small, torch.tensor([0.0, math.inf, -math.inf, math.nan], dtype=dtype)])

        def functions(x):
            return x.exp(), x.expm1(), x.log(), x.log1p(), x.tanh(), x.sigmoid()

        for got, exact in zip(compiled(functions, [x])[0], functions(x.double())):
            expected = exact.to(dtype)
            assert torch.equal(got.isnan(), expected.isnan())
            normal = expected.isfinite() & (expected.abs() > 4 * torch.finfo(dtype).tiny)
            error = ((got.double() - exact) / exact)[normal].abs().max()
            assert error < 4 * torch.finfo(dtype).eps
            assert torch.allclose(got, expected, rtol=1e-5, equal_nan=True)


def test_powers_are_accurate_everywhere():
    base = torch.cat([10 ** torch.linspace(-37, 38, 301), torch.tensor([0.0, 1.0, 2.0, math.inf, math.nan])])
    base = torch.cat([base, -base[base != 0]]).float()[:, None]  # compiled code knows of one zero only
    exponent = torch.tensor([0.0, 0.3, 1.0, 1.7, 2.0, 3.0, 11.0, 2.0**25, math.inf, math.nan])
    exponent = torch.cat([exponent, -exponent]).float()
    (got,) = compiled(lambda x, y: (x**y,), [base, exponent])[0]
    exact = base.double() ** exponent.double()
    expected = exact.float()
    assert torch.equal(got.isnan(), expected.isnan())
    normal = expected.isfinite() & (expected.abs() > 4 * torch.finfo(torch.float32).tiny)
    assert ((got.double() - exact) / exact)[normal].abs().max() < torch.finfo(torch.float32).eps
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-37, equal_nan=True)


def test_powers_of_integers_are_integers():
    base, exponent = torch.tensor([-3, 0, 2, 5]), torch.tensor([3, 0, 10, 1])
    check(lambda x, y: [x**y], [base, exponent])


A = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
B = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
BATCH = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(3))
SPREAD = torch.randn(6, 1, 20, generator=torch.Generator().manual_seed(4))
TRIANGLE = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(5)).tril()
LARGE_TRIANGLES = 2 * torch.eye(70) + 0.05 * torch.randn(3, 70, 70, generator=torch.Generator().manual_seed(6)).tril()

SHAPED = {
    "views": (lambda a: [a.t() + 1, a[1:, ::2], a[:, None] * a[None], a.reshape(2, 6), a.t().reshape(12), a[-1]], [A]),
    "lists": (lambda a: [*a.split(2), *a.unbind(1), torch.cat([a, 2 * a], 1), torch.stack([a, -a], 1)], [A]),
    "repetition": (lambda a: [a.expand(2, 4, 3) * 1, a.t().contiguous() * 2, a.flip(0, 1), a.flip(1) + a], [A]),
    "padding": (lambda a: [F.pad(a, (1, 2)), F.pad(a, (-1, 1, 0, 2), value=3.0), F.pad(a[0], (0, 1))], [A]),
    "triangles": (lambda a: [a.tril(), a.triu(1), a.diagonal() * 2, torch.diag_embed(a), a.diagonal(1).exp()], [A]),
    "sums": (
        lambda a: [a.sum(), a.sum(0), a.sum(1, keepdim=True), a.mean(), a.mean(1), a.norm(), a.norm(dim=0)],
        [A],
    ),
    "extremes": (lambda a: [a.amax(0), a.amin(1), a.logsumexp(1), a.softmax(0), a.log_softmax(1)], [A]),
    "long and short": (lambda a: [a.sum(-1), a.sum(0), (a * 2).transpose(0, 2) + 1, a.exp().sum((0, 2))], [SPREAD]),
    "running sums": (lambda a: [a.cumsum(0), a.cumsum(1), a[0].cumsum(0), a[:1].cumsum(0)], [A]),
    "products": (
        lambda a, b: [a @ b, b.t() @ a.t(), a @ b[:, 0], b[:, :1].t() @ a.t(), a[0] @ b, a[0].dot(a[1])],
        [A, B],
    ),
    "affine": (lambda a, b: [torch.addmm(b[0], a, b), torch.addmm(a @ b, a, b), F.linear(a, b.t(), b[1])], [A, B]),
    "batches": (lambda a, b: [a @ b, a.transpose(1, 2) @ a, (a[:, :1] @ a.transpose(1, 2)), a @ b[:, :1]], [BATCH, B]),
    "wide": (lambda a: [a[:, 0].t() @ a[:, 0], a[:, 0] @ a[:, 0].t(), a[:, 0] @ a[0, 0]], [SPREAD]),
    "solving": (
        lambda t, a: [
            torch.linalg.solve_triangular(t, a, upper=False),
            torch.linalg.solve_triangular(t.t(), a, upper=True),
            torch.linalg.solve_triangular(t, a.t(), upper=False, left=False),
            torch.linalg.solve_triangular(t, a, upper=False, unitriangular=True),
        ],
        [TRIANGLE, A],
    ),
    "factors": (
        lambda t: [torch.linalg.cholesky_ex(t @ t.t())[0], torch.linalg.cholesky_ex(torch.stack([t @ t.t()] * 2))[0]],
        [TRIANGLE],
    ),
    "large triangles": (
        lambda a: [
            function(chosen, matrix, upper=upper)
            for upper, chosen in ((False, a), (True, a.mT), (True, a.permute(1, 2, 0).contiguous().permute(2, 1, 0)))
            for function, matrix in (
                (torch.linalg.solve_triangular, a @ a),
                (torch.linalg.solve_triangular, a[:, :, 3:4]),
                (torch.linalg.solve_triangular, a[0, :, :37]),
                (torch.linalg.solve_triangular, torch.eye(70).to(a)),
            )
        ],
        [LARGE_TRIANGLES],
    ),
    "a triangle in common": (
        lambda a: [
            function(chosen, vectors, upper=upper)
            for upper, chosen in ((False, a[0]), (True, a[:1].mT), (False, a[None, :1]))
            for function, vectors in (
                (torch.linalg.solve_triangular, a[:, 0, :, None]),
                (torch.linalg.solve_triangular, (a @ a)[None, :, :, 3:4]),
                (torch.linalg.solve_triangular, a[:, None, :, 5, None]),
            )
        ],
        [LARGE_TRIANGLES],
    ),
    "factors of large matrices": (
        lambda a: [
            torch.linalg.cholesky_ex(a @ a.mT)[0],
            torch.linalg.cholesky_ex((a @ a.mT).permute(1, 2, 0).contiguous().permute(2, 0, 1))[0],
            torch.linalg.cholesky_ex(a[0, :20, :20] @ a[0, :20, :20].mT)[0],
            torch.linalg.cholesky_ex(torch.stack([torch.eye(70).to(a), torch.eye(70) - 2 * a[0, 30].diag()]))[1],
        ],
        [LARGE_TRIANGLES],
    ),
    "picking": (
        lambda a: [
            a[torch.tensor([3, 0, 0])],
            a[:, torch.tensor([2, -1])],
            a.index_select(1, torch.tensor([1, 1, 0])),
            a.gather(1, torch.tensor([[2], [0], [1], [1]])),
            a.new_zeros(4, 3).scatter_add(1, torch.tensor([[2, 2], [0, 0], [1, 2], [1, 1]]), a[:, :2]),
            a.new_zeros(5, 3).index_put((torch.tensor([4, 0, 0, 1]),), a, accumulate=True),
        ],
        [A],
    ),
    "picking by what was just computed": (
        lambda a: [
            a.gather(1, (a[:, :1] > 0).long()),
            a[:, 0][(a[:, 1] > 0).long()],
            a.new_zeros(4, 3).scatter_add(1, (a > 0).long(), a),
        ],
        [A],
    ),
}


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shaped_operations_are_torchs(name, dtype):
    function, inputs = SHAPED[name]
    check(function, [x.to(dtype) for x in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_torchs_whatever_their_sizes_and_strides(dtype):
    """Few rows, few columns, many of both, and matrices too large to be read as they lie."""
    sizes = [(1, 40, 70), (3, 33, 5), (11, 40, 37), (12, 40, 37), (20, 50, 3), (65, 200, 180), (130, 1100, 33)]
    shapes = [shape for m, k, n in sizes for shape in ((m, k), (k, n))]
    inputs = [(torch.randn(*shape) / shape[0] ** 0.5).to(dtype) for shape in shapes]

    def function(*matrices):
        pairs = list(zip(matrices[::2], matrices[1::2]))
        plain = [a @ b for a, b in pairs]
        turned = [a @ b.reshape(b.shape[1], -1).t() for a, b in pairs]
        gradients = [a.t() @ c for (a, _), c in zip(pairs, plain)]
        return [*plain, *turned, *gradients]

    check(function, inputs)


def test_what_has_no_code_of_its_own_is_left_to_torch():
    check(lambda x: [x.sort(1)[0] * 2, x.exp()], [X], externs=["sort"])


@pytest.mark.parametrize("turn", [lambda m: m, lambda m: m.mT], ids=["rows", "columns"])
def test_what_is_left_to_torch_lies_in_memory_as_it_was_recorded(turn):
    """A determinant factors the matrix or its transpose, as its layout says; the gradient relies on that."""

    def function(m):
        with torch.enable_grad():
            m = m.detach().requires_grad_()
            log_det = torch.linalg.slogdet(turn(torch.eye(3) + m))[1]
            return [log_det.detach(), *torch.autograd.grad(log_det.sum(), m)]

    check(function, [0.3 * torch.randn(4, 3, 3)], externs=["_linalg_slogdet", "linalg_lu_solve"])


def test_an_error_of_torch_comes_through():
    def function(x):
        return [torch.linalg.inv_ex(x, check_errors=True)[0] * 2]

    scan = Scan(Tape(function, [torch.eye(2)]), 0)
    with pytest.raises(RuntimeError, match="singular"):
        scan.run([], [torch.zeros(1, 2, 2)])
    _, (inverse,) = scan.run([], [2 * torch.eye(2)[None]])
    assert torch.equal(inverse[0], torch.eye(2))


def test_gradients_of_a_network_compile_whole():
    weights = [torch.randn(5, 7) / 3, torch.randn(7, 1) / 3]

    def slope(x, *weights):
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_() for w in weights]
            loss = (F.softplus(x @ leaves[0]).tanh() @ leaves[1]).square().mean()
            return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    check(slope, [torch.randn(33, 5), *weights])


def test_steps_carry_and_collect():
    tape = Tape(lambda s, t, x: (s + x, t * 2, s * x, t), [torch.zeros(2), torch.ones(()), torch.zeros(2)])
    x = torch.arange(6.0).reshape(3, 2)
    (s, t), (products, before) = Scan(tape, 2).run([torch.ones(2), torch.tensor(3.0)], [x])
    assert torch.equal(s, 1 + x.sum(0))
    assert t == 24
    assert torch.equal(before, torch.tensor([3.0, 6.0, 12.0]))
    assert torch.equal(products, torch.stack([torch.ones(2), 1 + x[0], 1 + x[:2].sum(0)]) * x)


def test_what_is_carried_may_be_collected_too():
    scan = Scan(Tape(lambda s, t, x: (s + x, s + x, s + x), [torch.zeros(2)] * 3), 2)
    x = torch.arange(6.0).reshape(3, 2)
    (s, t), (sums,) = scan.run([torch.ones(2), torch.zeros(2)], [x])
    assert torch.equal(sums, 1 + x.cumsum(0))
    assert torch.equal(s, sums[-1])
    assert torch.equal(t, s)


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize(
    "step",
    [
        lambda s, t, x: (0.5 * t + x, 0.3 * s + x, s + 2 * t + x),
        lambda s, t, x: (t, 2 * x, s + x),
        lambda s, t, x: (t, s, s - t),
        lambda s, t, x: (t.cumsum(-1) + x, s.sum(-1, keepdim=True) - 0.1 * t, s + x),
    ],
)
def test_each_of_what_is_carried_may_read_all_of_it(step, rows):
    """The next step's first input is written over this step's only after its last use."""
    state, x = [torch.zeros(rows, 4), torch.ones(rows, 4)], torch.randn(5, rows, 4)
    found, (collected,) = Scan(Tape(step, [*state, x[0]]), 2).run(state, [x])
    expected = []
    for given in x:
        *state, result = step(*state, given)
        expected.append(result)
    torch.testing.assert_close((found, collected), (state, torch.stack(expected)))


def test_memory_is_used_again():
    def chain(x):
        for _ in range(50):
            x = (x @ x.t()).tanh() @ x
        return [x]

    scan = Scan(Tape(chain, [torch.randn(8, 8)]), 0)
    assert scan.program.size < 12 * 8 * 8 * torch.get_default_dtype().itemsize


def test_equal_loops_are_compiled_once():
    def layers(x, w):
        for i in range(20):
            x = (x @ w[i]).tanh() + 1
        return [x]

    source = Scan(Tape(layers, [torch.randn(4, 3), torch.randn(20, 3, 3)]), 0).program.source
    assert source.count("void k") <= 3


def test_loops_alike_but_for_their_types_are_not_shared():
    """Both begin with zeros; those of half the width would leave old numbers in the second one's memory."""

    def padded(x, y):
        narrow = torch.ops.aten.slice_backward(x, [2, 4], 1, 0, 3, 1)
        wide = torch.ops.aten.slice_backward(y, [8], 0, 0, 5, 1).cumsum(0)
        for _ in range(3):
            wide = (wide + 1).cumsum(0)
        return [narrow, wide]

    inputs = [torch.ones(2, 3, dtype=torch.float32), torch.ones(5, dtype=torch.float64)]
    _, results = Scan(Tape(padded, inputs), 0).run([], [torch.stack([x] * 3) for x in inputs])
    for got, expected in zip(results, padded(*inputs), strict=True):
        assert torch.equal(got, torch.stack([expected] * 3))


def test_constants_that_are_not_read_are_dropped():
    """A product has a copy of the weights as it likes them."""
    weight, bias = torch.randn(7, 5), torch.randn(7)
    scan = Scan(Tape(lambda x: [x @ weight.t() + bias], [torch.randn(4, 5)]), 0)
    assert sorted(b.numel for b in scan.program.constants) == [7, 35]
    x = torch.randn(1, 4, 5)
    assert torch.allclose(scan.run([], [x])[1][0], x @ weight.t() + bias)


def test_changes_in_place_are_not_compiled():
    def function(x):
        y = x.new_zeros(2, 3)
        y[0] = x
        return [y]

    with pytest.raises(NotImplementedError, match="in place"):
        Scan(Tape(function, [torch.ones(3)]), 0)


@pytest.mark.parametrize(("prefix", "real"), build.TYPES.items())
def test_support_compiles_without_warnings(tmp_path, prefix, real):
    command = [
        build.compiler(),
        "-O2",
        f"-DREAL={real}",
        f"-DPREFIX={prefix}",
        "-Wall",
        "-fopenmp-simd",
        "-c",
        str(compilers.LINEAR),
        "-o",
        str(tmp_path / "x.o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not [line for line in done.stderr.splitlines() if "warning" in line and "unused" not in line]
