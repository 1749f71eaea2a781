"""The BentoML service: it adapts, and knows nothing of models.

`bentoml serve` in a checkout serves the exported bundle; `bentoml build` makes a Bento of it.
"""

import shlex
import sys

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer

from serve.app import attach_engine, build_app, doorman_of
from serve.engine import Engine, calm_garbage_collector, open_engine
from serve.lookup import SOURCE_ROOT
from serve.preflight import preflight
from serve.protocol import use_bounded_protocol
from serve.requirements import serving_requirements
from serve.settings import read_settings
from serve.telemetry import SWITCHES
from tasks.errors import ParitybitError

__all__ = ["ParitybitService"]

_APP = build_app()
use_bounded_protocol(doorman_of(_APP))


def _image() -> bentoml.images.Image:
    """What `bentoml containerize` starts from; inside a Bento nobody asks for it any more."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    image = bentoml.images.Image(
        base_image=f"python:{version}-slim",
        distro="none",  # any other installs build-essential and git first: 830 MB
        python_version=version,
        lock_python_packages=False,  # serving_requirements has pinned them
    )
    requirements = serving_requirements()
    if requirements:
        lines = shlex.join((SOURCE_ROOT / "serve" / "uv.sh").read_text(encoding="utf-8").splitlines())
        image.run(f"printf '%s\\n' {lines} > /usr/local/bin/uv && chmod +x /usr/local/bin/uv")
        image.python_packages(*requirements).build_include("serve/sbom.py")
    return image


def _tracing() -> dict[str, str]:
    """Traces none of the paths unless the operator named an exporter: a third of the event loop's time goes into it."""
    return {} if BentoMLContainer.tracing.exporter_type.get() else {"excluded_urls": ".*"}


@bentoml.service(
    name="paritybit",
    description="A certified encoder, served without PyTorch.",
    image=_image(),
    envs=[{"name": name, "value": value} for name, value in SWITCHES.items()],
    workers=1,
    # its own keep a time series for every path that anybody makes up; ours stand at /metrics
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # ours says more (serve.access)
    tracing=_tracing(),
)
# the bare callable, so that every path but BentoML's probes and metrics is ours: of a Starlette object BentoML takes
# its routes alone and answers the other paths itself, with an index page that loads a tag manager from elsewhere
@bentoml.asgi_app(_APP.__call__, path="/")
class ParitybitService:
    """A certified encoder behind HTTP; ready when its golden rows were replayed."""

    def __init__(self) -> None:
        """Opens the engine; BentoML calls it once in a worker, which takes no request before."""
        attach_engine(_APP, open_engine(read_settings()))
        calm_garbage_collector()

    async def __is_ready__(self) -> bool:
        """What BentoML's `/readyz` asks beside; on False it answers 503."""
        engine: Engine = _APP.state.engine
        return not engine.stopping

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def refuse_to_start() -> None:
        """Stops `bentoml serve` before its first worker, with one line, when the service would not start."""
        try:
            preflight()
        except ParitybitError as error:
            raise bentoml.exceptions.BentoMLException(str(error)) from None
