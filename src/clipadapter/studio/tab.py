"""What one browser tab shows: what a person opened in it, and the last message."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from clipadapter.studio.model import ExplainedPrediction


@dataclass(frozen=True)
class Note:
    """The message about the last action."""

    text: str  # a sentence or two
    is_error: bool = False  # whether something went wrong
    # Buttons that move pictures: (text on the button, class, keys of the pictures)
    offers: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


@dataclass
class Tab:
    """State of one page that is open in a browser."""

    open_class: str = ""  # class of which all pictures are shown
    shows_unlabelled: bool = False  # whether all unlabelled pictures are shown, not only the next ones
    renamed_class: str = ""  # class whose new name is being typed
    open_picture: str = ""  # key of the picture that is shown large
    # Copy of the picture to predict. Gradio stores equal uploads in one file, and that of an upload into a class
    # is removed.
    tried_file: Path | None = None
    prediction: ExplainedPrediction | None = None  # its prediction
    # `SessionState.learned_from` of the model that made the prediction
    prediction_learned_from: tuple[int, str, bool] = (-1, "", False)
    note: Note = Note("")  # the last message
    note_count: int = 0  # number of messages so far
    upload_count: int = 0  # number of uploads so far, failed ones too
    rejected_name_count: int = 0  # number of names of new classes that were rejected
    # Version of the session's state and revision of the contents that the page shows
    rendered_versions: tuple[int, int] = (-1, -1)
    # Digests of the HTML of each panel. The HTML has the pictures in it: it is a megabyte, and tabs are many.
    panel_digests: dict[str, bytes] = field(default_factory=dict)

    def show(self, note: Note) -> None:
        """Show a message in place of the last one."""
        self.note, self.note_count = note, self.note_count + 1
