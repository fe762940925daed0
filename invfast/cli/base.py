"""What the commands share: options, errors and exit codes, loading a model, printing a result."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invfast.cli import asked, terminal

if TYPE_CHECKING:
    from invfast.inversion import Inversion

Images = Annotated[
    list[Path], typer.Argument(help="PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or HEIC files.", show_default=False)
]
Model = Annotated[
    str,
    typer.Option(help="Folder of a diffusers pipeline, a .safetensors file, or a hub id. (default: the bundled one)"),
]
Source = Annotated[str | None, typer.Option("--model", help="As of `invfast invert`. (default: what the file names)")]
Config = Annotated[
    str,
    typer.Option(help="Of a --model that is a single file: a folder or hub id of a diffusers pipeline of its kind."),
]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the grid.")]
Prompts = Annotated[list[str], typer.Option("--prompt", help="What the images show; once for all, or once an image.")]
Guidance = Annotated[float, typer.Option(help="Guidance scale; inversion wants 1.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16, float64, or int8 on openvino. (default: the model's)")
]
Seed = Annotated[int, typer.Option(help="For methods that draw noise; not that of a generated image.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. (default: cuda where there is one)")]
Runtime = Annotated[str, typer.Option(help="Where the network runs: auto, eager, compile, openvino, ...")]
Cell = Annotated[int | None, typer.Option(help="Pixels of the longer side of each picture.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]


_stop_asked = threading.Event()


def _stop(number: int, frame: FrameType | None) -> None:
    _stop_asked.set()
    raise KeyboardInterrupt


def stop_if_asked(pipe: Any, step: int, t: int | float, tensors: dict[str, Any]) -> None:
    """A `callback_on_step_end` that raises Ctrl-C again where it was swallowed.

    An interrupt that arrives inside a destructor, or an import under a broad `except`, is lost in there.
    """
    check_stop()


def stop_on(*names: str) -> None:
    """Signals that end the command as Ctrl-C does, but those that are ignored, as nohup's SIGHUP is."""
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _stop)


def check_stop() -> None:
    """`stop_if_asked` for whoever asks."""
    if _stop_asked.is_set():
        raise KeyboardInterrupt


MESSAGES = "Messages"
TALK = {
    "verbose": (
        Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.", rich_help_panel=MESSAGES)],
        0,
    ),
    "quiet": (
        Annotated[bool, typer.Option("-q", "--quiet", help="Errors alone.", rich_help_panel=MESSAGES)],
        False,
    ),
    "log_file": (
        Annotated[Path | None, typer.Option(help="Append messages, with the time.", rich_help_panel=MESSAGES)],
        None,
    ),
}
"""What every command takes beside its own."""
FAILURES = (ArithmeticError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command: it takes TALK beside its own options, and its known failures end with a message and exit code 1."""

    @wraps(function)
    def wrapped(*args: Any, verbose: int = 0, quiet: bool = False, log_file: Path | None = None, **kwargs: Any) -> None:
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose are opposites; pass one")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, _stop)
        with ExitStack() as stack:
            try:
                stack.enter_context(terminal.spoken(-1 if quiet else verbose, log_file))
            except OSError as error:  # the log file's own
                terminal.error(f"error: {error}")
                raise typer.Exit(1) from None
            terminal.note(" ".join(sys.argv), shown=False)
            _ended(function, args, kwargs)

    own = inspect.signature(function, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=value, annotation=of) for name, (of, value) in TALK.items()]
    wrapped.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])
    wrapped.__annotations__ = {**function.__annotations__, **{name: of for name, (of, _) in TALK.items()}}
    return wrapped


def _ended(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Runs a command to its end, whichever that is."""
    try:
        asked.check(kwargs)
        function(*args, **kwargs)
        sys.stdout.flush()
    except (KeyboardInterrupt, *FAILURES) as error:
        # An import that Ctrl-C broke off may say so as an error of its own.
        if isinstance(error, KeyboardInterrupt) or _stop_asked.is_set():
            terminal.error("interrupted")
            sys.stdout.flush()
            os._exit(130)  # everything is unwound by now; tearing torch down would take a second more
        if isinstance(error, typer.Exit):  # a RuntimeError, and no failure
            raise
        if isinstance(error, BrokenPipeError):  # whoever reads the result has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        if os.environ.get("INVFAST_TRACEBACK"):
            raise
        terminal.error(f"error: {_said(error)}")
        raise typer.Exit(1) from None


def _said(error: BaseException) -> str:
    """Its message alone: a KeyError's has quotes around it, an OSError's its number in front."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error.args[0] if isinstance(error, KeyError) else error)


def one_each(given: Sequence[str], images: list[Path]) -> list[str]:
    """A prompt an image."""
    if len(given) not in (1, len(images)):
        raise ValueError(f"{len(given)} prompts for {len(images)} images; give one for all, or one an image")
    return list(given) * (len(images) if len(given) == 1 else 1)


def suffix_of(path: Path, known: Sequence[str], what: str = "pictures") -> str:
    """How a file is to be written, asked before anything is computed, which would be lost."""
    if path.suffix.lower() not in known:
        kinds = " or ".join(each[1:].upper() for each in known)
        ends = " or ".join(known)
        raise ValueError(f"{what} are written as {kinds}; {str(path)!r} does not end in {ends}")
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
    return path.suffix.lower()


def check_folder(path: Path) -> None:
    """Where several files go, asked before anything is computed, which would be lost."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{str(path)!r} is a file; name a folder, each image has a file of its own in it")


def write(path: Path, content: bytes) -> None:
    """A file, whole or not at all; its folder is made."""
    from invfast.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def load_model(model: str, device: str | None, config: str = "") -> Any:
    """`loading.load`, quietly; how far a pass is `terminal.progress` shows, not the pipeline's own bar."""
    from invfast import loading

    announce(model)
    pipe = loading.load(model, device, config)
    terminal.loaded()
    check_stop()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_model_of(inversions: Mapping[Path, Inversion], model: str | None, device: str | None, config: str = "") -> Any:
    """The model of inversions, by their files: the one asked for, else the one that they name, said in a note."""
    from invfast import loading
    from invfast.provenance import BUNDLED

    if model is not None:
        return load_model(model, device, config)
    named = {each.provenance.get("model"): file for file, each in inversions.items()}
    if len(named) > 1:
        said = " and ".join(f"{str(file)!r} names {name!r}" for name, file in named.items())
        raise ValueError(f"the inversions were made with different models: {said}; pass --model")
    ((name, file),) = named.items()
    found = loading.named_by(name, file)
    if found not in ("", f"{BUNDLED}emoji64"):  # the default everywhere else is no news
        terminal.note(f"model {name}, as {file} says; --model takes another")
    return load_model(found, device, config)


def announce(model: str) -> None:
    """Says what may touch the network, and keeps the bars of loading away, but a download's on a terminal."""
    import diffusers
    import transformers

    from invfast.provenance import HUB_ID

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if HUB_ID.fullmatch(model) and not Path(model).exists():
        terminal.note(f"loading {model} from the hub or its cache")
        if not terminal.console().is_terminal:
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()


def result(report: dict[str, Any], lines: list[str], as_json: bool) -> None:
    print(json.dumps(report) if as_json else "\n".join(lines))
