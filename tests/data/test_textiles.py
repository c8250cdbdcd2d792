import pytest

from clipadapter.data import read_image, textiles


def test_the_textiles_have_readable_class_names():
    pytest.importorskip("conformal_clip_data")
    dataset = textiles()
    assert (dataset.name, dataset.splits) == ("textiles", ("all",))
    counts = {name: dataset.labels.count(name) for name in dataset.class_names}
    assert counts == {"fabric with a global defect": 500, "fabric with a local defect": 500, "flawless fabric": 1000}
    assert read_image(dataset.paths[0]).size == (250, 250)
