r"""What flow guides refuse, each with what was found and what to do instead."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK, get_plates
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ..checks import check_functions, check_mapping, numbers_in
from ..model import supports
from ..model.checks import no_bijection

#: Sites' names and the shapes of their unconstrained values.
Shapes = Mapping[str, list[int]]


def check_arguments(name: str, init_scale: Any, **functions: Any) -> None:
    """The arguments of a guide; ``functions`` are those that must be callable, by name."""
    for key, function in functions.items():
        if key == "model" and not callable(function):
            kind = type(function).__name__
            raise TypeError(f"{name}: expected model to be a Pyro model, which is a function, got {kind}")
    check_functions(name, **functions)
    if isinstance(init_scale, bool) or not isinstance(init_scale, Real):
        raise TypeError(f"{name}: expected init_scale to be a number, got {type(init_scale).__name__}")
    if not 0 < float(init_scale) < float("inf"):
        raise ValueError(f"{name}: init_scale must be a positive number, got {init_scale}")


def no_latents(name: str) -> RuntimeError:
    """For a model without latents; a RuntimeError, as Pyro's own guides raise."""
    return RuntimeError(
        f"{name} found no latent variables in the model; check that its latents are pyro.sample "
        "statements without obs= and not hidden by poutine.block"
    )


def refuse_sites(name: str, trace: Any) -> None:
    """Latents for which there is no continuous, unconstrained, vectorised stand-in."""
    for site, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"] or site_is_subsample(node):
            continue
        if _is_discrete(node["fn"]):
            raise ValueError(
                f"{name}: latent site '{site}' is discrete ({type(node['fn']).__name__}), and flows are continuous. "
                'Mark it infer={"enumerate": "parallel"}, or the model @config_enumerate, to have it summed out (see '
                "http://pyro.ai/examples/enumeration.html); or hide it with poutine.block and write its guide by hand"
            )
        if supports.is_point(node["fn"]):
            raise ValueError(
                f"{name}: latent site '{site}' is a Delta: all its mass is at one value, so that it has no density; "
                f"what is computed is a pyro.deterministic('{site}', value), or a sample site with obs=value"
            )
        if supports.is_periodic(node["fn"]):
            raise ValueError(_periodic(name, site, node["fn"]))
        if supports.differing_components(node["fn"]):
            raise ValueError(
                f"{name}: latent site '{site}' is a mixture of components with different supports, to whose union no "
                "bijection from real vectors is known; use components on one support"
            )
        for frame in node["cond_indep_stack"]:
            if not frame.vectorized:
                raise ValueError(
                    f"{name}: latent site '{site}' is inside the sequential plate '{frame.name}', which autoguides "
                    f'cannot follow; use `with pyro.plate("{frame.name}", ...):`, or a Python range for the loop'
                )
        try:
            supports.bijection(node["fn"])
        except NotImplementedError:
            raise no_bijection(name, node) from None


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except NotImplementedError:  # a support that is left open
        return False


def _periodic(name: str, site: str, fn: Any) -> str:
    return (
        f"{name}: latent site '{site}' is an angle or a direction ({type(fn).__name__}), and flows have densities on "
        "real vectors: along the real line an angle's repeats for ever. Draw a direction in its place, x = "
        f"pyro.sample('{site}', ProjectedNormal(torch.zeros(2))), under poutine.reparam(model, config={{'{site}': "
        "ProjectedNormalReparam()}), and, for an angle, take t = torch.atan2(x[..., 1], x[..., 0]) with its prior as a "
        f"pyro.factor('{site}_prior', VonMises(...).log_prob(t))"
    )


def refuse_plates(name: str, own: Mapping[str, Any]) -> None:
    """``NeuTraReparam`` (Pyro 1.9) adds the flow's log-determinant to the first site, once a row of its plates."""
    for frame in get_plates():
        if frame.name in own and frame.size > 1:
            raise ValueError(
                f"{name}: NeuTraReparam would count the flow's log-determinant {frame.size} times, once for each row "
                f"of plate '{frame.name}', because the model's first latent is inside it. Sample a latent that is "
                "outside of plates first, or use .to_event() instead of the plate"
            )


def refuse_scales() -> None:
    """``NeuTraReparam`` (Pyro 1.9) adds the flow's log-determinant to the first site, whose scale multiplies it."""
    scale = math.prod(float(m.scale) for m in _PYRO_STACK if isinstance(m, ScaleMessenger))
    if scale != 1:
        raise ValueError(
            f"NeuTraReparam would count the flow's log-determinant {scale:g} times, because poutine.scale is around "
            "the model's first latent. Put it around the observations alone, or take vi.refine(), which counts it once"
        )


def check_value(name: str, node: Any, values: Mapping[str, Tensor]) -> None:
    """The value whose density is asked for."""
    site, shape = node["name"], node["fn"].shape()
    check_mapping(f"{name}.log_prob", values=values)
    if site not in values:
        raise ValueError(f"{name}.log_prob: no value for site '{site}'; expected one for each latent site")
    got = numbers_in(f"{name}.log_prob", f"the value of site '{site}'", values[site]).shape
    if got[len(got) - len(shape) :] != shape:
        expected = ", ".join(map(str, ("...", *shape)))
        raise ValueError(f"{name}.log_prob: expected site '{site}' of shape ({expected}), got {tuple(got)}")


def check_flat(name: str, latent: Any, dim: int) -> None:
    """Flat unconstrained draws, whose values are asked for."""
    if not isinstance(latent, Tensor) or latent.shape[-1:] != (dim,):
        got = f"shape {tuple(latent.shape)}" if isinstance(latent, Tensor) else type(latent).__name__
        raise ValueError(
            f"{name}: expected flat unconstrained draws, a tensor of shape (num_samples, {dim}), got {got}"
        )


def masked_by_case(name: str, site: str) -> str:
    """For a masked latent in an objective that reads the model as it stands."""
    return (
        f"{name}: latent site '{site}' is masked where an enumerated site says so, and Pyro's own ELBOs have no "
        "density for it there: their bound is infinite. Train with pyro_nflows.ELBO, IWAE or VI, which count it "
        "with its prior"
    )


def need_setup(name: str) -> RuntimeError:
    """For what only a guide that has seen its model knows."""
    return RuntimeError(
        f"{name} does not know the model's latents yet; call guide(*args) once with the model's arguments"
    )


def need_call(name: str, sites: Iterable[str]) -> RuntimeError:
    """For values that only a run of the model knows, without the arguments for one."""
    return RuntimeError(
        f"{name}: the support or the prior of latent site '{sorted(sites)[0]}' depends on other latents or on the "
        "model's arguments; pass the arguments, as in guide.constrain(latent, *args), or call guide(*args) first"
    )


def check_sites(name: str, expected: Shapes | None, found: Shapes) -> None:
    """Compare a model's latents with those of the state that was loaded."""
    for site in {} if expected is None else {**expected, **found}:
        then, now = (expected or {}).get(site, "absent"), found.get(site, "absent")
        if then != now:
            raise ValueError(
                f"{name}: the loaded state is of another model: site '{site}' has unconstrained shape {then} there "
                f"and {now} here; load it into a guide of the model it was saved from"
            )


def check_structure(name: str, structure: Any) -> None:
    """What a guide is asked to be over."""
    if structure not in ("auto", "joint", "plates"):
        raise ValueError(f'{name}: structure must be "auto", "joint" or "plates", got {structure!r}')


def check_end(name: str, end: Any) -> None:
    """What a guide is asked to end in."""
    if end not in ("auto", "full", "sparse", "low_rank", "diagonal"):
        raise ValueError(f'{name}: end must be "auto", "full", "sparse", "low_rank" or "diagonal", got {end!r}')


def no_plates(name: str) -> ValueError:
    """For a model without latents in plates."""
    return ValueError(
        f'{name}: structure="plates" follows the plates of a model, but none of its latents is in a pyro.plate; put '
        'the rows that are independent given the rest into one, or take structure="joint"'
    )


def check_build(name: str, flow: Any, latent_dim: int) -> None:
    """The dimensions of what ``build`` made."""
    if (flow.input_dim, flow.output_dim) != (latent_dim, latent_dim):
        raise ValueError(
            f"{name}: build({latent_dim}) made a layer of {flow.input_dim} -> {flow.output_dim} dimensions, but the "
            f"model has {latent_dim} latent dimensions"
        )


def forget_params(prefix: str, layer: nn.Module) -> None:
    """Drop what the param store holds under a layer's names."""
    store = pyro.get_param_store()
    for key, _ in layer.named_parameters():
        if f"{prefix}$$${key}" in store:
            del store[f"{prefix}$$${key}"]


def refuse_lists(name: str, master: Any) -> None:
    """A part of a guide list sees a part of the latents only."""
    if master is not None:
        raise ValueError(
            f"{name} follows the gradient of the model's log density, of all latents at once, and cannot stand in an "
            "AutoGuideList; use it alone, or another guide there, such as AutoFlow"
        )


def refuse_minibatches(name: str, trace: Any) -> None:
    """Gradients of a subsample are noise, which the weights of annealed draws would carry."""
    for site, node in trace.nodes.items():
        for frame in node.get("cond_indep_stack", ()):
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"{name}: site '{site}' is inside plate '{frame.name}', which is subsampled ({frame.size} of "
                    f"{frame.full_size}), and {name} needs the gradient of all the data. Remove subsample_size, or "
                    "use AutoFlow"
                )


def refuse_random(name: str, first: Tensor, second: Tensor) -> None:
    """Two evaluations of a model's log density at the same points."""
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise ValueError(
            f"{name}: the model's log density is random given its latents (it was {float(first[0]):.6g}, then "
            f"{float(second[0]):.6g}): it subsamples data, or a latent is hidden by poutine.block. Expected one that "
            "the latents and the arguments determine; give all latents to the guide, or use AutoFlow"
        )


def refuse_tracing(name: str) -> None:
    """``torch.jit`` has no tape for gradients within what it traces."""
    if torch.jit.is_tracing():
        raise NotImplementedError(
            f"{name} draws by the gradient of the model, which torch.jit cannot trace. Use Trace_ELBO in place of "
            "JitTrace_ELBO; pyro_nflows.ELBO(compile=True) makes steps faster"
        )


def need_guide() -> RuntimeError:
    """For annealed layers that were unpickled without their guide."""
    return RuntimeError(
        "this layer follows the gradient of a guide's model, and was unpickled without the guide; "
        "make a new guide of the model and load_state_dict() into it"
    )


def refuse_replication(name: str) -> None:
    """Many data sets are fitted side by side, and a guide that needs its model knows one."""
    raise ValueError(
        f"SBC: {name} draws with the model's gradient at one data set, and SBC fits many side by side; "
        "use another guide, such as AutoFlow"
    )


def check_levels(name: str, levels: Any) -> None:
    """Levels of quantiles: one, or a list of them."""
    if levels.dim() > 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(f"{name}.quantiles: expected numbers between 0 and 1, got {levels.tolist()}")


def need_model(name: str, model: tuple[Callable[..., Any]] | None) -> Callable[..., Any]:
    """The model that a tuple holds, unless the guide was unpickled."""
    if model is None:
        raise RuntimeError(
            f"this {name} was unpickled and has no model; guides are saved without it. "
            "Make a new guide of the model and load_state_dict() into it"
        )
    return model[0]


def check_centering(
    name: str,
    chosen: Mapping[str, float | Tensor],
    sites: Sequence[str],
    shapes: Mapping[str, torch.Size] | None = None,
) -> None:
    """Refuse a centering that is not between 0 and 1, or of a site whose prior depends on no other latent.

    :param shapes: of the sites, where centering in another one is to be refused too.
    """
    for site, value in chosen.items():
        if site not in sites:
            raise ValueError(
                f"{name}: centering: got site '{site}', expected some of {list(sites)}, the latents whose prior has a "
                "location or a scale that depends on other latents"
            )
        number = numbers_in(name, f"centering of '{site}'", value)
        if shapes is not None and (number.shape != () and number.shape != shapes[site]):
            raise ValueError(
                f"{name}: centering of '{site}' must be one number or a tensor of the site's shape, "
                f"{tuple(shapes[site])}, got shape {tuple(number.shape)}"
            )
        if not bool(((number >= 0) & (number <= 1)).all()):
            raise ValueError(f"{name}: centering of '{site}' must be between 0 and 1, got {value}")
