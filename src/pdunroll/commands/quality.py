"""Speech quality over whole test sentences, and some to listen to.  python -m pdunroll quality [experiment=...].

Compares the degraded sentences with restorations by the DCT and, for each mask, norm and mode, by the operator
with the least validation error at the certified optimum, each at that optimum. Writes to outputs/<name>/:
    quality.csv          one row per restoration, sentence and metric
    quality_summary.csv  means over the sentences, and the gain over these with its interval
    audio/               the sentences to listen to, and index.json, which describes them
"""

from __future__ import annotations

from pathlib import Path

from pdunroll.commands.entry import build, entry, given
from pdunroll.config import Config


@entry
def main(config: Config) -> None:
    """Restore the sentences, score them, and write the tables and the audio."""
    import numpy as np
    from joblib import Parallel, delayed

    from pdunroll.evaluation.quality import KEY, candidates, listen, measures, readable, restored, summary
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
    chosen = np.concatenate([np.flatnonzero(frames) for frames in sentences.values()])
    lengths = np.cumsum([frames.sum() * runs[0].shape[1] for frames in sentences.values()])[:-1]

    models, box = candidates(config.outputs, runs), test.box(chosen)
    observed = Degradation.of(manifest["settings"]).name
    solving = {
        "algorithm": build(config.algorithm),
        "tolerance": options.tolerance,
        "max_iterations": options.max_iterations,
    }
    work = Parallel(n_jobs=options.jobs or -1, return_as="generator", max_nbytes=None)(
        delayed(restored)(operator, box, **solving) for _, operator in models
    )
    blank = dict.fromkeys(KEY)
    takes = [({**blank, "restoration": "original"}, test.truth[chosen])]
    takes.append(({**blank, "restoration": observed}, test.observation[chosen]))
    takes += [(key, np.asarray(frames)) for (key, _), frames in zip(models, work, strict=True)]
    signals = [(key, np.split(frames.ravel(), lengths)) for key, frames in takes]

    originals = signals[0][1]
    rows = [
        {**key, "file": name, "metric": metric, "value": value}
        for key, parts in signals[1:]
        for name, original, part in zip(sentences, originals, parts, strict=True)
        for metric, value in measures(original, part, manifest["settings"]["sample_rate"]).items()
    ]
    write_table(config.outputs / "quality.csv", rows)
    means = summary(rows, options.seed, observed)
    write_table(config.outputs / "quality_summary.csv", means)
    listen(config.outputs / "audio", signals, list(sentences)[: options.listen], manifest["settings"]["sample_rate"])
    print(readable(means))
