from .bundle import Bundle as Bundle
from .bundle import TestPart as TestPart
from .bundle_files import load_bundle as load_bundle
from .bundle_files import save_bundle as save_bundle
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .continual.metrics import ContinualMetrics as ContinualMetrics
from .continual.metrics import continual_metrics as continual_metrics
from .evaluation import (
    ModelEvaluation as ModelEvaluation,
)
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
from .methods import method_version as method_version
from .pivot import pivot_runs as pivot_runs
from .plan import Plan as Plan
from .protocols import (
    create_protocol as create_protocol,
)
from .protocols import (
    list_protocols as list_protocols,
)
from .protocols import (
    register_protocol as register_protocol,
)
from .records import append_runs as append_runs
from .records import read_runs as read_runs
from .report import (
    write_report as write_report,
)
from .run import Run as Run
from .sources import (
    FEATURES as FEATURES,
)
from .sources import (
    Source as Source,
)
from .sources import (
    open_source as open_source,
)
from .sources import (
    split_in_halves as split_in_halves,
)
from .sources import (
    split_train_test as split_train_test,
)
from .study import Study as Study
from .study import load_study as load_study
from .suite import Suite as Suite
from .suite import load_suite as load_suite
from .suite_files import list_planned_suites as list_planned_suites
from .suite_files import list_suites as list_suites
from .summary import Reference as Reference
from .summary import summarise as summarise
from .summary import table as table
