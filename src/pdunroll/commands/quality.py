"""Score the quality of restored test sentences.  python -m pdunroll quality [experiment=...].

Whole sentences are restored to the certified optimum with the DCT and, for each mask, norm and mode, with the operator
of the least validation error at the optimum. Frames are side by side or averaged over shifted grids. The command
writes to outputs/<name>/:
    quality.csv          one row per restoration, sentence and metric
    quality_summary.csv  means over the sentences, and the gains over the degraded sentences with their intervals
    audio/               some sentences to listen to, and index.json, which describes them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdunroll.commands.config import Config
from pdunroll.commands.entry import build, entry, given


@entry
def main(config: Config) -> None:
    """Restore the sentences, score them, and write the tables and the audio."""
    import numpy as np
    from joblib import Parallel, delayed

    from pdunroll.evaluation.quality import KEY, candidates, listen, measures, readable, restored, summary
    from pdunroll.evaluation.tables import rounded
    from pdunroll.files import write_table
    from pdunroll.speech.degradation import Degradation
    from pdunroll.speech.frames import load, read_manifest
    from pdunroll.training.run_folder import finished_runs

    options = config.quality
    test, manifest = load(config.prepared, "test"), read_manifest(config.prepared)
    runs = finished_runs(Path(config.evaluation.runs), manifest["digest"], config.name, given(config))
    files = manifest["splits"]["test"]["files"]
    drawn = np.random.default_rng(options.seed).permutation(len(files))[: options.sentences]
    sentences = {files[number]["name"]: test.file == number for number in sorted(drawn)}  # frames in order
    originals = [test.truth[frames].ravel() for frames in sentences.values()]
    parts = test.observation, *(test.bounds or ())
    known = [np.stack([part[frames].ravel() for part in parts], axis=1) for frames in sentences.values()]

    models = candidates(config.outputs, runs)
    observed = Degradation.of(manifest["settings"]).name
    solving = {
        "radius": test.radius,
        "algorithm": build(config.algorithm),
        "tolerance": options.tolerance,
        "max_iterations": options.max_iterations,
    }
    grids = sorted({1, min(options.shifts, runs[0].shape[1])})
    takes = [({**key, "shifts": shifts}, operator) for key, operator in models for shifts in grids]
    work: Any = Parallel(n_jobs=options.jobs or -1, return_as="generator", max_nbytes=None)(
        delayed(restored)(operator, known, key["shifts"], **solving) for key, operator in takes
    )
    blank = dict.fromkeys(KEY)
    signals = [({**blank, "restoration": "original"}, originals)]
    signals.append(({**blank, "restoration": observed}, [sentence[:, 0] for sentence in known]))
    signals += [(key, parts) for (key, _), parts in zip(takes, work, strict=True)]

    rows = rounded(
        {**key, "file": name, "metric": metric, "value": value}
        for key, parts in signals[1:]
        for name, original, part in zip(sentences, originals, parts, strict=True)
        for metric, value in measures(original, part, manifest["settings"]["sample_rate"]).items()
    )
    write_table(config.outputs / "quality.csv", rows)
    means = summary(rows, options.seed, observed)
    write_table(config.outputs / "quality_summary.csv", means)
    heard = [(key, parts) for key, parts in signals if key["shifts"] in (None, grids[-1])]
    listen(config.outputs / "audio", heard, list(sentences)[: options.listen], manifest["settings"]["sample_rate"])
    print(readable(means))
