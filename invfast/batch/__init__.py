"""Inversion by the hundred thousand: folders and tables of images in, shards and an index out.

    run("photos", "noise", Invert(steps=50))     every image that is not done yet
    open("noise")["sub/a.png"]                   its inversion

A task is done to images chunk by chunk by a `Worker`: one in this process, or with `runner=Ray(...)` many on a cluster.
"""

from invfast.batch.cluster import Ray
from invfast.batch.detecting import Detect
from invfast.batch.inverting import Invert
from invfast.batch.plan import Share
from invfast.batch.results import Results, open
from invfast.batch.running import Progress, run
from invfast.batch.source import captions
from invfast.batch.task import Result, Task
from invfast.batch.worker import Worker

__all__ = [
    "Detect",
    "Invert",
    "Progress",
    "Ray",
    "Result",
    "Results",
    "Share",
    "Task",
    "Worker",
    "captions",
    "open",
    "run",
]
