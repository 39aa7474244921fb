"""The figures show the numbers of the tables, each where it belongs."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise, product
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer

from pdunroll.errors import InputError
from pdunroll.files import write_json, write_table
from pdunroll.report import gallery, registry
from pdunroll.report.figures import bump, interpretability, regimes, speed
from pdunroll.report.results import goal, summary
from pdunroll.report.style import footnote, save
from pdunroll.training.run_key import MASK_TITLES, NORM_TITLES, RunKey

MASKS = ("active_set", "released")
NORMS = ["frobenius", "spectral"]
MODES = (("full", None), ("truncated", 5))
DEPTHS = (10, 30, 200)
SEEDS = (0, 1)
GRID = (1, 3, 10, 30, 100, 200, 1000)
LAST = GRID[-1]
ORIGIN = "what made it"


def error(mask: str, mode: str, depth: int, seed: int, iterations: int, norm: str = "frobenius") -> float:
    """A made-up test MSE, different for all arguments."""
    cell = 1 + 0.31 * MASKS.index(mask) + 0.17 * (mode == "truncated") + 0.002 * depth + 0.05 * seed
    return 1e-3 * cell * (1 + 2 / iterations) * (1.0 if norm == "frobenius" else 1.07)


def optimum(mask: str, mode: str, depth: int, seed: int, norm: str = "frobenius") -> float:
    """A made-up test MSE at the certified optimum, which no curve comes to."""
    return 0.9 * error(mask, mode, depth, seed, LAST, norm)


def seconds(mask: str, mode: str, depth: int, seed: int) -> float:
    return depth * (1 + MASKS.index(mask)) * (1.0 if mode == "full" else 0.5) + 3 * seed


UNTRAINED_OPTIMUM = 1.85e-3


def untrained(kind: str, iterations: int, norm: str | None = "frobenius") -> float:
    return 2.5e-3 if kind == "none" else (1.9e-3 if norm == "frobenius" else 1.88e-3) + 1e-4 / iterations


def tables(
    masks=MASKS, modes=MODES, depths=DEPTHS, seeds=SEEDS, norms=("frobenius",), drop=()
) -> tuple[list[dict], list[dict], list[dict]]:
    """evaluation.csv, optima.csv and training.csv of made-up trainings, without the (mode, depth) in `drop`."""
    references = [RunKey("none").columns, *(RunKey("dct", step_norm=norm).columns for norm in norms)]
    evaluation = [
        {**key, "l_inference": count, "mse": untrained(key["backprop"], count, key["step_norm"])}
        for key in references
        for count in GRID
    ]
    optima = [{**key, "optimum_mse": UNTRAINED_OPTIMUM} for key in references[1:]]
    training = []
    for norm, mask, (mode, b), depth, seed in product(norms, masks, modes, depths, seeds):
        if (mode, depth) in drop:
            continue
        cell = RunKey(mode, mask, norm, depth, seed, b).columns
        training.append(cell | {"seconds": seconds(mask, mode, depth, seed)})
        optima.append(cell | {"optimum_mse": optimum(mask, mode, depth, seed, norm)})
        evaluation += [
            cell | {"l_inference": count, "mse": error(mask, mode, depth, seed, count, norm)} for count in GRID
        ]
    return evaluation, optima, training


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def label(mode: str, b: int | None) -> str:
    return mode if b is None else f"{mode} (b = {b})"


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def panels(figure, count: int):
    """The panels with the curves, and what lies behind them."""
    assert len(figure.axes) in (count, 2 * count)
    return figure.axes[:count], figure.axes[count:]


def curves(ax) -> dict[str, ErrorbarContainer]:
    found = [container for container in ax.containers if isinstance(container, ErrorbarContainer)]
    named = {container.get_label(): container for container in found}
    assert len(named) == len(found)
    return named


def labelled(ax) -> dict[str, matplotlib.lines.Line2D]:
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def vertical(ax) -> set[float]:
    """Where there are vertical lines over the whole height."""
    return {
        float(line.get_xdata()[0])
        for line in ax.lines
        if len(line.get_xdata()) == 2 and list(line.get_ydata()) == [0, 1] and len(set(line.get_xdata())) == 1
    }


def test_regimes_shows_all_errors():
    figure = regimes(*tables(), [35.0, 150.0])
    axes, _ = panels(figure, 2)
    assert "active-set" in axes[0].get_title()
    assert "released" in axes[1].get_title()
    for ax, mask in zip(axes, MASKS, strict=True):
        found = curves(ax)
        assert set(found) == {f"{label(*mode)}, {kind}" for mode in MODES for kind in ("classical", "optimality")}
        for mode in MODES:
            for kind, dashes in (("classical", "--"), ("optimality", "-")):
                line, _, (bars,) = found[f"{label(*mode)}, {kind}"].lines
                value = {"classical": lambda *cell: error(*cell, cell[2]), "optimality": optimum}[kind]
                values = [[value(mask, mode[0], depth, seed) for seed in SEEDS] for depth in DEPTHS]
                assert line.get_linestyle() == dashes
                np.testing.assert_array_equal(line.get_xdata(), range(3))
                np.testing.assert_allclose(np.array(line.get_ydata(), float), [mean(v) for v in values], rtol=1e-12)
                for position, (segment, v) in enumerate(zip(bars.get_segments(), values, strict=True)):
                    np.testing.assert_allclose(segment, [[position, min(v)], [position, max(v)]], rtol=1e-9)
        assert [text.get_text() for text in ax.get_xticklabels()] == ["10", "30", "200"]
        np.testing.assert_array_equal(ax.get_xticks(), range(3))
        dct = labelled(ax)["DCT (untrained), optimality"]
        assert set(dct.get_ydata()) == {UNTRAINED_OPTIMUM}
        assert ax.get_yscale() == "log"


def test_regimes_has_one_colour_a_mode_and_filled_markers_for_optimality():
    figure = regimes(*tables(), [35.0, 150.0])
    for ax in panels(figure, 2)[0]:
        lines = {name: container.lines[0] for name, container in curves(ax).items()}
        for mode in MODES:
            classical, optimality = (lines[f"{label(*mode)}, {kind}"] for kind in ("classical", "optimality"))
            assert classical.get_color() == optimality.get_color()
            assert classical.get_markerfacecolor() == "none"
            assert optimality.get_markerfacecolor() == optimality.get_color()
        assert len({line.get_color() for line in lines.values()}) == 2
        assert len({line.get_marker() for line in lines.values()}) == 2


def test_regimes_shows_the_runtime_as_bars():
    figure = regimes(*tables(), [35.0, 150.0])
    _, behind = panels(figure, 2)
    for ax, mask in zip(behind, MASKS, strict=True):
        bars = [container for container in ax.containers if isinstance(container, BarContainer)]
        assert len(bars) == len(MODES)
        taken = []
        for container, mode in zip(bars, MODES, strict=True):
            heights = [bar.get_height() for bar in container]
            expected = [mean(seconds(mask, mode[0], depth, seed) for seed in SEEDS) for depth in DEPTHS]
            np.testing.assert_allclose(heights, expected, rtol=1e-12)
            for position, bar in enumerate(container):
                left, right = bar.get_x(), bar.get_x() + bar.get_width()
                assert position - 0.5 < left < right < position + 0.5
                taken.append((left, right))
        taken.sort()
        assert all(right <= left + 1e-9 for (_, right), (left, _) in pairwise(taken))
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] > max(seconds(name, "full", 200, 1) for name in MASKS)
        assert ax.get_ylim() == behind[0].get_ylim()
    assert "runtime" in behind[-1].get_ylabel()
    assert all(ax.get_visible() for ax in behind)
    assert len(regimes(*tables(), [35.0, 150.0], runtime=False).axes) == 2


@pytest.mark.parametrize(
    ("depths", "borders", "lines", "numbers"),
    [
        ((10, 30, 200), [35.0, 150.0], {1.5}, {"regime 1": 0.5, "regime 3": 2.0}),
        ((10, 30, 100, 200), [35.0, 150.0], {1.5, 2.5}, {"regime 1": 0.5, "regime 2": 2.0, "regime 3": 3.0}),
        ((10, 30), [35.0, 150.0], set(), {"regime 1": 0.5}),
        ((10, 30, 200), [20.0], {0.5}, {"regime 1": 0.0, "regime 2": 1.5}),
        ((10, 30, 200), [], set(), {"regime 1": 1.0}),
        ((10, 30, 200), [30.0], {0.5}, {"regime 1": 0.0, "regime 2": 1.5}),
    ],
)
def test_regimes_are_marked(depths, borders, lines, numbers):
    evaluation, optima, training = tables(depths=depths, seeds=(0,))
    for ax in panels(regimes(evaluation, optima, training, borders), 2)[0]:
        assert vertical(ax) == lines
        assert {text.get_text(): text.get_position()[0] for text in ax.texts} == numbers
        assert ax.get_xlim() == (-0.6, len(depths) - 0.4)


def test_regimes_leaves_gaps_for_trainings_that_are_missing():
    evaluation, optima, training = tables(drop=[("truncated", 30)])
    axes, behind = panels(regimes(evaluation, optima, training, [35.0]), 2)
    for ax, mask in zip(axes, MASKS, strict=True):
        line = curves(ax)["truncated (b = 5), optimality"].lines[0]
        np.testing.assert_array_equal(line.get_xdata(), [0, 2])
        assert line.get_ydata()[1] == mean(optimum(mask, "truncated", 200, seed) for seed in SEEDS)
        assert len(curves(ax)["full, optimality"].lines[0].get_xdata()) == 3
    for ax in behind:
        full, truncated = ax.containers
        assert (len(full), len(truncated)) == (3, 2)
        assert truncated[1].get_x() > full[2].get_x()


@pytest.mark.parametrize("mask", MASKS)
def test_one_mask_gives_one_panel(mask):
    evaluation, optima, training = tables(masks=(mask,))
    (ax,), (behind,) = panels(regimes(evaluation, optima, training, [35.0]), 1)
    assert behind.get_position().bounds == ax.get_position().bounds
    (other,), nothing = panels(interpretability(evaluation, optima, None), 1)
    assert nothing == []
    assert ax.get_title() == other.get_title()


@pytest.mark.parametrize("l_training", [None, [10, 200], [30, 77]])
def test_interpretability_shows_every_curve(l_training):
    evaluation, optima, _ = tables()
    axes, nothing = panels(interpretability(evaluation, optima, l_training), 2)
    assert nothing == []
    shown = [depth for depth in DEPTHS if l_training is None or depth in l_training]
    for ax, mask in zip(axes, MASKS, strict=True):
        lines = labelled(ax)
        expected = {f"{label(*mode)}, L = {depth}" for mode in MODES for depth in shown}
        assert set(lines) == expected | {"quantized", "DCT (untrained)"}
        for kind, name in (("none", "quantized"), ("dct", "DCT (untrained)")):
            np.testing.assert_array_equal(lines[name].get_xdata(), GRID)
            np.testing.assert_allclose(lines[name].get_ydata(), [untrained(kind, count) for count in GRID])
        for mode in MODES:
            for depth in shown:
                line = lines[f"{label(*mode)}, L = {depth}"]
                values = [mean(error(mask, mode[0], depth, seed, count) for seed in SEEDS) for count in GRID]
                np.testing.assert_array_equal(line.get_xdata(), GRID)
                np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-12)
        assert ax.get_xscale() == ax.get_yscale() == "log"


def test_interpretability_rings_the_iterations_in_training():
    evaluation, optima, _ = tables()
    for ax, mask in zip(interpretability(evaluation, optima, None).axes, MASKS, strict=True):
        rings = [line for line in ax.lines if line.get_linestyle() == "None" and line.get_marker() != "_"]
        found = {(line.get_markeredgecolor(), float(line.get_xdata()[0])): float(line.get_ydata()[0]) for line in rings}
        lines = labelled(ax)
        assert len(found) == len(rings) == len(MODES) * len(DEPTHS)
        for mode in MODES:
            for depth in DEPTHS:
                colour = lines[f"{label(*mode)}, L = {depth}"].get_color()
                value = mean(error(mask, mode[0], depth, seed, depth) for seed in SEEDS)
                assert found[colour, depth] == pytest.approx(value, rel=1e-12)


def test_interpretability_marks_the_certified_optima():
    evaluation, optima, _ = tables()
    for ax, mask in zip(interpretability(evaluation, optima, None).axes, MASKS, strict=True):
        found = [(line.get_color(), float(line.get_ydata()[0])) for line in ax.lines if line.get_marker() == "_"]
        assert all(float(line.get_xdata()[0]) > LAST for line in ax.lines if line.get_marker() == "_")
        lines = labelled(ax)
        expected = [(lines["DCT (untrained)"].get_color(), UNTRAINED_OPTIMUM)]
        for mode, depth in product(MODES, DEPTHS):
            colour = lines[f"{label(*mode)}, L = {depth}"].get_color()
            expected.append((colour, mean(optimum(mask, mode[0], depth, seed) for seed in SEEDS)))
        assert sorted(found) == [(colour, pytest.approx(value, rel=1e-12)) for colour, value in sorted(expected)]


def test_interpretability_tells_curves_apart():
    evaluation, optima, _ = tables()
    for ax in interpretability(evaluation, optima, None).axes:
        looks = [(line.get_color(), str(line.get_linestyle()), line._dash_pattern) for line in labelled(ax).values()]
        assert len({str(look) for look in looks}) == len(looks)


def test_interpretability_leaves_out_trainings_that_are_missing():
    evaluation, optima, _ = tables(drop=[("truncated", 30)])
    for ax in interpretability(evaluation, optima, None).axes:
        names = set(labelled(ax))
        assert "truncated (b = 5), L = 30" not in names
        assert {"full, L = 30", "truncated (b = 5), L = 200"} <= names


def test_interpretability_refuses_iterations_that_nothing_was_trained_with():
    evaluation, optima, _ = tables()
    with pytest.raises(InputError) as caught:
        interpretability(evaluation, optima, [20, 40])
    text = str(caught.value)
    assert "figures.l_training" in text
    assert "[10, 30, 200]" in text
    assert "\n" not in text


def test_norms_have_panels_of_their_own():
    evaluation, optima, training = tables(norms=NORMS, seeds=(0,))
    pairs = [*product(NORMS, MASKS)]
    axes, behind = panels(regimes(evaluation, optima, training, [35.0, 150.0]), 4)
    for ax, runtime, (norm, mask) in zip(axes, behind, pairs, strict=True):
        assert ax.get_title() == f"{MASK_TITLES[mask]}\n{NORM_TITLES[norm]}"
        for mode in MODES:
            for kind in ("classical", "optimality"):
                line = curves(ax)[f"{label(*mode)}, {kind}"].lines[0]
                value = {"classical": lambda *cell: error(*cell[:4], cell[2], cell[4]), "optimality": optimum}[kind]
                expected = [value(mask, mode[0], depth, 0, norm) for depth in DEPTHS]
                np.testing.assert_allclose(np.array(line.get_ydata(), float), expected, rtol=1e-12)
        assert len(runtime.containers) == len(MODES)
    axes, _ = panels(interpretability(evaluation, optima, None), 4)
    for ax, (norm, mask) in zip(axes, pairs, strict=True):
        lines = labelled(ax)
        assert list(lines["DCT (untrained)"].get_ydata()) == [untrained("dct", count, norm) for count in GRID]
        expected = [error(mask, "full", 30, 0, count, norm) for count in GRID]
        np.testing.assert_allclose(lines["full, L = 30"].get_ydata(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("depths", "borders", "shown"),
    [((10, 30, 200), [35.0, 150.0], 30), ((10, 30, 200), [20.0, 150.0], 10), ((100, 200), [35.0, 150.0], 100)],
)
def test_bump_shows_the_largest_depth_of_regime_1_in_each_setting(depths, borders, shown):
    evaluation, optima, _ = tables(norms=NORMS, depths=depths, seeds=(0,))
    axes, nothing = panels(bump(evaluation, optima, borders), 4)
    assert nothing == []
    for ax, (norm, mask) in zip(axes, product(NORMS, MASKS), strict=True):
        lines = labelled(ax)
        assert set(lines) == {f"{label(*mode)}, L = {shown}" for mode in MODES} | {"quantized", "DCT (untrained)"}
        for mode in MODES:
            line = lines[f"{label(*mode)}, L = {shown}"]
            expected = [error(mask, mode[0], shown, 0, count, norm) for count in GRID]
            np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
        assert vertical(ax) == {shown}
        assert ax.get_title() == f"{MASK_TITLES[mask]}\n{NORM_TITLES[norm]}"


def test_speed_shows_every_training_as_a_point():
    evaluation, optima, _ = tables(norms=NORMS)
    slow = [{**row, "optimum_mse": 2 * row["optimum_mse"]} if row["l_training"] == 10 else row for row in optima]
    close = [
        {**row, "mse": curve_end(optima, row)} if row["l_inference"] == LAST and row["l_training"] != 10 else row
        for row in evaluation
    ]
    axes, nothing = panels(speed(close, slow), 2)
    assert nothing == []
    for ax, mask in zip(axes, MASKS, strict=True):
        assert ax.get_title() == MASK_TITLES[mask]
        lines = labelled(ax)
        assert set(lines) == {f"{label(*mode)}, {norm}" for mode in MODES for norm in NORMS} | {"DCT (untrained)"}
        for mode, norm in product(MODES, NORMS):
            x, y = lines[f"{label(*mode)}, {norm}"].get_data()
            expected = [
                optimum(mask, mode[0], depth, seed, norm) * (1 + (depth == 10)) for depth in DEPTHS for seed in SEEDS
            ]
            assert sorted(y) == pytest.approx(sorted(expected), rel=1e-12)
            assert set(x) == {LAST}
        texts = [text.get_text() for text in ax.texts]
        assert sorted(set(texts)) == ["200", "30", "> 10"]
        assert len(texts) == len(MODES) * len(NORMS) * len(DEPTHS) * len(SEEDS)


def test_the_goal_is_an_error_as_small_and_a_tenth_of_the_iterations():
    def rows(key: RunKey, mse: float, n1: int) -> tuple[list[dict], dict]:
        curve = [{**key.columns, "l_inference": l, "mse": mse if l >= n1 else 2 * mse} for l in (5, 50, 499, 501)]
        return curve, {**key.columns, "optimum_mse": mse}

    made_up = [
        rows(RunKey("full", "released", "frobenius", 200, 0), 1.0, 501),
        rows(RunKey("full", "released", "frobenius", 200, 1), 1.2, 499),
        rows(RunKey("full", "released", "spectral", 10, 0), 1.15, 50),
        rows(RunKey("full+warm", "released", "spectral", 10, 0), 1.05, 50),
        rows(RunKey("full+warm", "released", "spectral", 10, 1), 1.15, 50),
        rows(RunKey("full+halpern", "released", "spectral", 10, 0), 1.0, 499),
        rows(RunKey("full+random_depth", "released", "spectral", 10, 0), 0.9, 900),
    ]
    evaluation, optima = [row for curve, _ in made_up for row in curve], [row for _, row in made_up]
    _, *lines = goal(evaluation, optima)
    assert {line.split(",")[0]: line.split()[-5:] for line in lines} == {
        "full + random depth": ["1", "-18.18", "%", "-", "no"],
        "full + halpern": ["1", "-9.09", "%", "499", "no"],
        "full + warm": ["2", "+0.00", "%", "50", "yes"],
        "full": ["1", "+4.55", "%", "50", "no"],
    }
    assert any("released, frobenius, L = 200" in line and "500" in line for line in lines)
    assert goal(evaluation, optima[:3]) == []


def curve_end(optima: list[dict], row: dict) -> float:
    """The error at the optimum of the operator of a row of evaluation.csv, as the curve's last one."""
    mine = [own["optimum_mse"] for own in optima if RunKey.from_row(own) == RunKey.from_row(row)]
    return mine[0] if mine else row["mse"]


def test_bump_leaves_out_settings_that_have_no_such_training():
    evaluation, optima, _ = tables(norms=NORMS)
    few = [row for row in evaluation if not (row["step_norm"] == "spectral" and row["l_training"] == 30)]
    axes, _ = panels(bump(few, optima, [35.0, 150.0]), 2)
    assert all("Frobenius" in ax.get_title() for ax in axes)


@pytest.mark.parametrize(
    ("setting", "shown"),
    [("null", NORMS), ("[frobenius]", ["frobenius"]), ("[spectral]", ["spectral"]), ("[spectral,frobenius]", NORMS)],
)
def test_figures_show_the_norms_that_are_asked_for(call, tmp_path, monkeypatch, setting, shown):
    drawn = {}
    monkeypatch.setattr("pdunroll.report.figures.save", lambda figure, stem, origin: drawn.update({stem.name: figure}))
    made(tmp_path)
    done = call("figures", "name=made", f"figures.step_norms={setting}")
    assert done.status == 0, done.err
    for name, count in (("regimes", len(shown)), ("interpretability", len(shown)), ("bump", len(NORMS))):
        titles = [ax.get_title() for ax in drawn[name].axes if ax.get_title()]
        wanted = shown if name != "bump" else NORMS  # which compares them
        assert titles == [f"{MASK_TITLES['active_set']}\n{NORM_TITLES[norm]}" for norm in NORMS if norm in wanted]
        assert len(titles) == count
    assert done.out.count("spectral") == done.out.count("active_set") / 2 == 6  # the table lists them all


@pytest.mark.parametrize("setting", ["[foo]", "[frobenius,foo]"])
def test_norms_that_nothing_was_trained_with_are_refused(call, tmp_path, setting):
    made(tmp_path)
    done = call("figures", "name=made", f"figures.step_norms={setting}")
    assert done.status == 2
    (line,) = done.err.splitlines()
    for part in ("pdunroll: figures.step_norms=", "frobenius, spectral"):
        assert part in line
    assert not (tmp_path / "outputs/made/figures").exists()


def made(folder) -> None:
    """Tables of trainings with both norms, with all columns, in outputs/made/."""
    outputs = folder / "outputs/made"
    evaluation, optima, training = tables(masks=("active_set",), norms=NORMS, seeds=(0,))
    write_table(outputs / "evaluation.csv", [{**row, "validation_mse": row["mse"]} for row in evaluation])
    certified = {"validation_optimum_mse": 1e-3, "certified": 1.0}
    write_table(outputs / "optima.csv", [{**row, **certified} for row in optima])
    write_table(outputs / "training.csv", [{**row, "validation_mse": 1e-3, "best_step": 7} for row in training])
    origin = {"command": "x", "seeds": [0], "commit": "x", "data": "x", "test_frames": 4}
    write_json(outputs / "provenance.json", origin)


def test_a_figure_of_ones_own_is_one_function(call, tmp_path, monkeypatch):
    """The recipe of docs/extending.md: the command draws it, the report and the dashboard find it."""
    monkeypatch.setattr(registry, "FIGURES", dict(registry.FIGURES))

    @registry.figure("figures/seconds", "Seconds of training against L", tables=("training",))
    def seconds_against_depth(training):
        figure, ax = plt.subplots(layout="constrained")
        ax.scatter([row["l_training"] for row in training], [row["seconds"] for row in training])
        return figure

    made(tmp_path)
    done = call("figures", "name=made")
    assert done.status == 0, done.err
    assert "outputs/made/figures/seconds.png" in done.out
    for suffix in (".png", ".svg"):
        found = gallery.figures_in(tmp_path / "outputs/made", suffix)
        assert [drawing.stem.split("/")[1] for drawing in found] == [
            "regimes",
            "interpretability",
            "bump",
            "speed",
            "seconds",
        ]


def test_the_order_of_rows_does_not_matter():
    evaluation, optima, training = tables()
    one = regimes(evaluation, optima, training, [35.0])
    other = regimes(evaluation[::-1], optima[::-1], training[::-1], [35.0])
    for ax, twin in zip(one.axes[:2], other.axes[:2], strict=True):
        assert list(curves(ax)) == list(curves(twin))
        for name, container in curves(ax).items():
            np.testing.assert_allclose(container.lines[0].get_xydata(), curves(twin)[name].lines[0].get_xydata())


def test_legends_name_each_curve_once():
    evaluation, optima, training = tables()
    for figure in (regimes(evaluation, optima, training, [35.0]), interpretability(evaluation, optima, None)):
        (legend,) = figure.legends
        names = [text.get_text() for text in legend.get_texts()]
        assert len(set(names)) == len(names)
        assert set(names) == set(figure.axes[0].get_legend_handles_labels()[1])


def test_legends_name_what_one_panel_alone_has():
    evaluation, optima, training = (
        [row for row in rows if (row["primal_mask"], row["backprop"]) != (MASKS[0], "truncated")] for rows in tables()
    )
    figure = regimes(evaluation, optima, training, [35.0])
    assert any("truncated" in text.get_text() for text in figure.legends[0].get_texts())


def test_summary_lists_all_cells():
    evaluation, optima, training = tables()
    first, header, *lines = summary(evaluation, optima, training).splitlines()
    assert f"{untrained('none', LAST):.3e}" in first
    assert f"{UNTRAINED_OPTIMUM:.3e}" in first
    assert header.split() == ["mask", "step", "norm", "backprop", "L", *"after L at the optimum training".split()]
    expected = [
        (mask, label(*mode), depth, seed)
        for mask in MASKS
        for mode in MODES
        for depth in DEPTHS
        for seed in SEEDS
    ]  # fmt: skip
    assert len(lines) == len(expected)
    for line, (mask, name, depth, seed) in zip(lines, expected, strict=True):
        mode = name.split()[0]
        assert line.split()[:2] == [mask, "frobenius"]
        assert name in line
        assert (", seed 1" in line) == (seed == 1)
        assert line.split()[-5:] == [
            str(depth),
            f"{error(mask, mode, depth, seed, depth):.3e}",
            f"{optimum(mask, mode, depth, seed):.3e}",
            f"{seconds(mask, mode, depth, seed):.1f}",
            "s",
        ]


def test_saved_figures_are_whole(tmp_path):
    evaluation, optima, training = tables()
    save(regimes(evaluation, optima, training, [35.0, 150.0]), tmp_path / "new" / "regimes", ORIGIN)
    save(interpretability(evaluation, optima, None), tmp_path / "new" / "interpretability", ORIGIN)
    assert plt.get_fignums() == []
    names = [f"{name}.{kind}" for name in ("interpretability", "regimes") for kind in ("png", "svg")]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    for name in names:
        path = tmp_path / "new" / name
        if path.suffix == ".png":
            assert plt.imread(path).std() > 0.01
        else:
            assert f"<!-- {ORIGIN} -->" in path.read_text()
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_footnote_names_what_made_the_figure():
    text = footnote(
        {
            "command": "python -m pdunroll evaluate experiment=demo",
            "seeds": [0, 3],
            "commit": "0123456789abcdef" * 2 + "01234567",
            "data": "synthetic, sha256 " + "fedcba9876543210" * 4,
            "test_frames": 512,
        }
    )
    assert "\n" not in text
    for part in (
        "python -m pdunroll evaluate experiment=demo",
        "seed 0, 3",
        "commit 0123456789ab ",
        "synthetic, sha256 fedcba987654",
        "512 test frames",
    ):
        assert part in text


def test_figures_load_no_torch():
    code = (
        "import sys, pdunroll.report.figures; print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
