"""The restoration error after every number of iterations, for one operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, Iterate
from pdunroll.core.closed_form import Vertex, iterates_after, masks_are_final, vertex
from pdunroll.core.dispatch import engine_for
from pdunroll.core.problem import Masks, Observation

FIRST_CHECK = 200  # iterations before the first check for frames whose rest is known
CHECK_GROWTH = 1.15  # ratio of the numbers of iterations at successive checks


def log_grid(iterations: int, points: int, include: Sequence[int] = ()) -> NDArray[np.int64]:
    """Return log-spaced numbers of iterations, ascending.

    Args:
        iterations: the last number; the first is 1.
        points: their least number, unless there are fewer whole numbers.
        include: further numbers of the grid.

    Examples:
        >>> from pdunroll.evaluation.curves import log_grid
        >>> log_grid(100, 5, include=[30]).tolist()
        [1, 3, 10, 30, 32, 100]
    """
    wanted, grid = points, np.arange(1, iterations + 1)
    if iterations > points:
        while len(grid := np.unique(np.geomspace(1, iterations, wanted).round().astype(np.int64))) < points:
            wanted += 1
    return np.union1d(grid, np.asarray(include, dtype=np.int64))


@torch.inference_mode()
def error_curve(
    algorithm: ChambollePock,
    operator: Tensor,
    truth: Tensor,
    observation: Observation,
    grid: Sequence[int],
    batch_size: int,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the error of each frame after each number of iterations, and its duality gap after the last one.

    The iterations are those of training: Algorithm 1 from y^0 = x, in the dtype of the frames. On a CPU, a frame is
    dropped from the batch once its further iterates are known, because they do not change any more or because its masks
    are final (`pdunroll.core.closed_form`).

    Args:
        algorithm: Chambolle-Pock with the problem and its step sizes.
        operator: K, (m, n).
        truth: y, (frames, n).
        observation: x, (frames, n), or the box of the frames.
        grid: numbers of iterations, ascending.
        batch_size: frames that are iterated together.

    Returns:
        The mean squared errors, (len(grid), frames), and the relative duality gaps of the last iterate, (frames,).

    Examples:
        >>> import torch
        >>> from pdunroll.core.chambolle_pock import chambolle_pock
        >>> from pdunroll.evaluation.curves import error_curve
        >>> operator, y, x = torch.eye(2), torch.tensor([[0.4, 0.0]]), torch.tensor([[0.5, 0.1]])
        >>> algorithm = chambolle_pock(operator, radius=0.2)
        >>> errors, gaps = error_curve(algorithm, operator, y, x, grid=[1, 10, 100], batch_size=1)
        >>> [round(float(error), 4) for error in errors[:, 0]]
        [0.0018, 0.005, 0.005]
    """
    curves = [
        BatchCurve(algorithm, operator, truth[batch], observation[batch], [*map(int, grid)]).run()
        for batch in torch.arange(len(truth), device=truth.device).split(batch_size)
    ]
    errors, gaps = (torch.cat(parts, dim=-1).cpu().numpy() for parts in zip(*curves, strict=True))
    return errors, gaps


class Check(NamedTuple):
    """A batch at a check for frames whose further iterates are known."""

    iterate: Iterate
    masks: Masks

    def select(self, keep: Tensor) -> Check:
        """Return the check of the frames where `keep` (B,) is true."""
        return Check(Iterate(*(part[keep] for part in self.iterate)), Masks(*(mask[keep] for mask in self.masks)))


class BatchCurve:
    """The errors of one batch along the iterations.

    Args:
        algorithm: Chambolle-Pock with the problem and its step sizes.
        operator: K, (m, n).
        truth: y, (B, n).
        observation: x, (B, n), or the box of the frames.
        grid: numbers of iterations, ascending.
    """

    def __init__(
        self, algorithm: ChambollePock, operator: Tensor, truth: Tensor, observation: Observation, grid: list[int]
    ) -> None:
        self.algorithm, self.operator, self.grid = algorithm, operator, grid
        self.truth, self.observation = truth, algorithm.problem.box(observation)
        self.operator64 = operator.double()
        self.errors = truth.new_empty(len(grid), len(truth))
        self.gaps = truth.new_empty(len(truth), dtype=torch.float64)
        self.active = torch.arange(len(truth), device=truth.device)  # the frames that are still iterated
        self.place = 0  # index in the grid of the first unknown error
        self.last_check: Check | None = None
        self.vertices: dict[int, Vertex | None] = {}  # of frames whose masks have been the same at two checks or more

    def run(self) -> tuple[Tensor, Tensor]:
        """Return the errors (len(grid), B) and the last gaps (B,)."""
        engine, iterate = (
            engine_for(self.algorithm, self.operator),
            self.algorithm.start(self.operator, self.observation),
        )
        # on a GPU a smaller batch is no faster, and each size would be captured as graphs of its own
        count, check_at = 0, self.grid[-1] if self.truth.is_cuda else FIRST_CHECK
        while count < self.grid[-1] and len(self.active):
            before, count = count, min(self.grid[self.place], check_at)
            iterate = engine.iterate(self.operator, self.observation[self.active], count - before, iterate)
            if count == self.grid[self.place]:
                self.errors[self.place, self.active] = self._mse(iterate.primal, self.active)
                self.place += 1
            if count == self.grid[-1]:
                self._finish(self.active, iterate.primal, iterate.dual)
            elif count == check_at:
                check_at = round(check_at * CHECK_GROWTH)
                iterate = self._drop_known_frames(iterate, count)
        return self.errors, self.gaps

    def _drop_known_frames(self, iterate: Iterate, count: int) -> Iterate:
        """Write the rest of the curves of frames for which it is known; return the iterate of the others."""
        x = self.observation[self.active]
        check = Check(iterate, self.algorithm.problem.free_masks(iterate.z_dual, iterate.z_primal, x))
        known = torch.zeros_like(self.active, dtype=torch.bool)
        if self.last_check is not None:
            known = at_rest(check, self.last_check)
            frames = self.active[known]
            self.errors[self.place :, frames] = self._mse(iterate.primal[known], frames)
            self._finish(frames, iterate.primal[known], iterate.dual[known])
            steps = torch.as_tensor(self.grid[self.place :], device=self.truth.device) - count
            for i, y, psi in self._in_closed_form(check, check.masks.equal(self.last_check.masks) & ~known, steps):
                frame = self.active[i : i + 1]
                self.errors[self.place :, frame] = self._mse(y, frame)[:, None].to(self.errors.dtype)
                self._finish(frame, y[-1:], psi[-1:])
                known[i] = True
        self.active, self.last_check = self.active[~known], check.select(~known)
        return self.last_check.iterate

    def _in_closed_form(self, check: Check, candidates: Tensor, steps: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the candidates (B,) with final masks: place in the batch, and y and psi after each number of steps."""
        frames = set(self.active[candidates].tolist())
        self.vertices = {frame: found for frame, found in self.vertices.items() if frame in frames}
        if self.algorithm.theta != 1.0:
            return
        for i in candidates.nonzero()[:, 0].tolist():
            frame = int(self.active[i])
            primal, dual = check.iterate.primal[i].double(), check.iterate.dual[i].double()
            previous = 2.0 * primal - check.iterate.extrapolated[i].double()
            if frame not in self.vertices:
                x, masks = self.observation[frame].to(torch.float64), Masks(*(mask[i] for mask in check.masks))
                self.vertices[frame] = vertex(self.algorithm, self.operator64, x, masks, primal, dual)
            found = self.vertices[frame]
            if found is not None and masks_are_final(self.algorithm, found, previous, primal, dual):
                yield i, *iterates_after(self.algorithm, found, previous, primal, steps)

    def _mse(self, primal: Tensor, frames: Tensor) -> Tensor:
        return (primal - self.truth[frames]).square().mean(dim=-1)

    def _finish(self, frames: Tensor, primal: Tensor, dual: Tensor) -> None:
        """Write the gaps of these frames' last iterates."""
        x = self.observation[frames].to(torch.float64)
        self.gaps[frames] = self.algorithm.problem.duality_gap(self.operator64, x, primal.double(), dual.double())


def at_rest(check: Check, last: Check) -> Tensor:
    """Return for which frames the iterate is the same as at the last check, (B,)."""
    now, before = check.iterate, last.iterate
    same = [(getattr(now, name) == getattr(before, name)).all(dim=1) for name in ("dual", "primal", "extrapolated")]
    return torch.stack(same).all(dim=0)
