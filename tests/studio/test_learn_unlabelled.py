"""The switch "Learn from unlabelled pictures": what the model is fitted to, and what is remembered."""

import json

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.studio import session as session_module
from clipadapter.studio.actions import Actions, Tab
from clipadapter.studio.panels import Panels

from .conftest import fill, noisy, settle


@pytest.fixture
def session(open_session):
    """Two classes of two pictures, and ten pictures without a label."""
    opened = open_session()
    fill(opened)
    opened.project.add_pictures(None, [noisy(name, i) for name in ("red", "blue") for i in range(10, 15)])
    settle(opened)
    return opened


def pool_of(session):
    kept = session.state.model.classifier.head_.kept_pictures_
    return 0 if kept is None else len(kept)


def test_the_switch_is_off_at_first_and_gives_the_pictures_to_the_fit_when_it_is_on(session):
    assert session.state.error == "" and not session.learns_unlabelled and pool_of(session) == 0
    before = session.state.model.classifier.head_.logits(np.eye(session.encoder.info.dim, dtype=np.float32)[:3])
    session.learn_unlabelled(True)
    state = settle(session)
    assert (state.error, state.learns_unlabelled, pool_of(session)) == ("", True, 10)
    assert len(state.pool) == 10
    # A picture that gets a label is no longer one without.
    session.project.label_pictures([session.project.contents.unlabelled[0].key], "red")
    settle(session)
    assert session.state.model.shot_count == 5 and pool_of(session) == 9
    session.learn_unlabelled(False)
    settle(session)
    assert pool_of(session) == 0 and session.state.pool == ()
    session.project.undo()
    settle(session)
    after = session.state.model.classifier.head_.logits(np.eye(session.encoder.info.dim, dtype=np.float32)[:3])
    np.testing.assert_array_equal(after, before)


def test_without_labelled_pictures_the_pictures_without_labels_cause_no_second_fit(open_session):
    opened = open_session()
    for name in ("red", "blue"):
        opened.project.add_class(name)
    opened.project.add_pictures(None, [noisy("red", i) for i in range(3)])
    opened.learn_unlabelled(True)
    state = settle(opened)
    fits = state.fit_number
    opened.project.add_pictures(None, [noisy("blue", i) for i in range(3)])
    assert settle(opened).fit_number == fits + 1


def test_of_more_pictures_than_are_used_those_that_come_later_are_used_too(session, monkeypatch):
    """The pictures are read in parts: the first fit knows some of them only, the last one is to know them all."""
    for name in ("MAX_UNLABELLED", "FIRST_PICTURES"):
        monkeypatch.setattr(session_module, name, 4)
    session.learn_unlabelled(True)
    settle(session)
    fits, fit = [], session_module.fit_project_model

    def record(*args, unlabelled, **kwargs):
        fits.append(unlabelled)
        return fit(*args, unlabelled=unlabelled, **kwargs)

    monkeypatch.setattr(session_module, "fit_project_model", record)
    session.project.add_pictures(None, [noisy("red", i) for i in range(20, 26)])
    settle(session)
    pictures = session.project.contents.unlabelled
    assert len(pictures) == 16
    expected = session._features.matrix([pictures[i] for i in (0, 5, 10, 15)])
    np.testing.assert_array_equal(fits[-1], expected)
    settle(session)
    assert len(fits) == 2  # nothing changed, so that it is not fitted again


def test_the_switch_is_remembered(session, open_session, tmp_path):
    session.learn_unlabelled(True)
    assert json.loads((tmp_path / "p" / ".studio" / "settings.json").read_text())["learn_unlabelled"] == "yes"
    assert open_session().learns_unlabelled
    settle(open_session())
    other = open_session("nearest-mean")
    assert not other.learns_unlabelled
    with pytest.raises(InputError, match="'nearest-mean' learns from labelled pictures only"):
        other.learn_unlabelled(True)


def test_the_page_has_the_switch_and_says_what_came_of_it(session, open_session, tmp_path):
    actions, tab = Actions(session, lambda: str(tmp_path)), Tab()

    def switch():
        return Panels(session).render_changed(Tab())["quality"].rpartition("<label")[2]

    assert "Learn from unlabelled pictures" in switch() and "checked" not in switch()
    actions.perform(tab, {"action": "learn-unlabelled", "on": "yes"})
    settle(session)
    assert not tab.note.is_error and " checked" in switch()
    how = session.state.model.classifier.head_.describe_unlabelled()
    assert f"10 pictures tried: {how.split(' (')[0]}" in switch()
    actions.perform(tab, {"action": "learn-unlabelled", "on": ""})
    assert not session.learns_unlabelled and "checked" not in switch()
    assert "learns from labelled pictures only" in Panels(open_session("knn")).render_changed(Tab())["quality"]
