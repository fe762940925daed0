"""A method of one's own beside DDIM: two looks a step, the second at the noise that the first came to.

docs/extending.md says what a method is, and how a table of coefficients is enough for most.
"""

from dataclasses import dataclass

from invfast import demo, invert, reconstruct, rows
from invfast.methods.base import Method, Problem, Stepper


@dataclass(frozen=True)
class TwoLooks(Method):
    def inverter(self, problem: Problem, start: int = 0) -> Stepper:
        return TwoLooksStepper(problem, start)


class TwoLooksStepper(Stepper):
    def __init__(self, problem: Problem, start: int) -> None:
        up = rows.up(problem.schedule)  # inputs (x, y, o(y)), output f(y): a fixed point of f is what sampling undoes
        self.table, self.lincomb = problem.place_guided(up), problem.kernels.lincomb
        self.steps = range(start, problem.schedule.num_steps)

    def init(self, state):
        return {"latents": state["latents"]}

    def step(self, step, state, predict):
        x = y = state["latents"]
        for _ in range(2):
            (y,) = self.lincomb((x, y, *predict(y, step.t)), self.table, step.index)
        return {"latents": y}, None


pipe = demo.load_pipeline()
image, prompt = demo.load_images()["cat"]
for method in ("ddim", TwoLooks()):
    inversion = invert(pipe, image, prompt, method=method, num_inference_steps=10)
    back = reconstruct(pipe, inversion, output_type="latent").latents
    error = (back - inversion.init_latents).norm() / inversion.init_latents.norm()
    print(f"{method}: {error:.2%} off the image's latents, by {inversion.stats.evaluations[0]} evaluations")
