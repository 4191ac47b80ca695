"""Tasks: plain values that make the same wherever they run."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from analysis_nets import images, session_of, write


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_task_makes_the_same_from_its_pickle_in_another_folder(project, precision):
    from granplugin import backends
    from granplugin.runs.build_options import options_of
    from granplugin.runs.calibrated import calibrate
    from granplugin.runs.executor import perform
    from granplugin.runs.jobs import plan_jobs
    from granplugin.runs.measure import MeasureVariant
    from granplugin.runs.variants import variant_task

    project.arrays = {"images": images(32)}
    recipe = write(project, "Residual", engines=["onnxruntime"], precision=precision)
    with session_of(recipe, project.out) as session:
        jobs = plan_jobs([session.loaded], session.layers)
        task = variant_task(session, jobs[-1], calibrate(session, jobs))
        folders = [session.run.cache, project.folder / "elsewhere"]
        folders[1].mkdir()
        found = []
        for folder, each in zip(folders, [task, pickled(task)], strict=True):
            built, used = perform(each, folder)
            options = options_of(
                session.recipe, session.input_sizes, built, backends.backend_of("onnxruntime")
            )
            measuring = MeasureVariant(
                built, "onnxruntime", options, session.loaded, session.evaluation, session.axes
            )
            measured, also = perform(pickled(measuring), folder)
            assert {path.parent for path in used | also} == {folder}
            found.append((built, measured, names(used | also)))
    (built, measured, files), (again, measured_again, files_again) = found
    assert files == files_again
    assert built.onnx.key == again.onnx.key
    assert built.onnx.path.read_bytes() == again.onnx.path.read_bytes()
    for name, output in measured.outputs.items():
        np.testing.assert_array_equal(output, measured_again.outputs[name])


def pickled(task):
    return pickle.loads(pickle.dumps(task))


def names(paths: set[Path]) -> set[str]:
    return {path.name for path in paths}
