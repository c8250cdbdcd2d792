from .comparison import compare as compare
from .evaluation import (
    cross_validate_model as cross_validate_model,
)
from .evaluation import (
    evaluate_model as evaluate_model,
)
from .from_features import StreamTask as StreamTask
from .from_features import few_shot as few_shot
from .from_features import learn_task_stream as learn_task_stream
from .launch import run_suite as run_suite
from .methods import BASELINES as BASELINES
from .methods import default_heads as default_heads
from .protocols import (
    create_protocol as create_protocol,
)
from .protocols import (
    list_protocols as list_protocols,
)
from .protocols import (
    register_protocol as register_protocol,
)
from .report import (
    compare_studies as compare_studies,
)
from .report import (
    summarise as summarise,
)
from .report import (
    table as table,
)
from .report import (
    write_report as write_report,
)
from .run import Run as Run
from .run import read_runs as read_runs
from .sources import (
    FEATURES as FEATURES,
)
from .sources import (
    open_source as open_source,
)
from .study import Study as Study
from .study import load_study as load_study
from .suite import Suite as Suite
from .suite import load_suite as load_suite
from .suite_files import list_planned_suites as list_planned_suites
from .suite_files import list_suites as list_suites
