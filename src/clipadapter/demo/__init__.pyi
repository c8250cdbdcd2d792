from .data import DemoData as DemoData
from .data import open_demo_data as open_demo_data
from .findings import Results as Results
from .findings import describe_findings as describe_findings
from .sheet import SheetAnswer as SheetAnswer
from .sheet import draw_sheet as draw_sheet
from .sheet import explain_some as explain_some
