from .afa import Afa as Afa
from .ape import Ape as Ape
from .ape_t import ApeT as ApeT
from .auto.head import Auto as Auto
from .base import Head as Head
from .bdc_adapter import BdcAdapter as BdcAdapter
from .clap import Clap as Clap
from .clip_adapter import ClipAdapter as ClipAdapter
from .clip_adapter_ablations import ClipAdapterTrainedRatio as ClipAdapterTrainedRatio
from .clip_adapter_ablations import Hoso as Hoso
from .clip_adapter_replay import ClipAdapterReplay as ClipAdapterReplay
from .cross_modal import CrossModal as CrossModal
from .gda import Gda as Gda
from .incremental import ExactIncrementalHead as ExactIncrementalHead
from .incremental import IncrementalHead as IncrementalHead
from .knn import Knn as Knn
from .linear_probe import LinearProbe as LinearProbe
from .lp_plus_plus import LpPlusPlus as LpPlusPlus
from .nearest_mean import NearestMean as NearestMean
from .out_of_fold import (
    OutOfFold as OutOfFold,
)
from .out_of_fold import (
    mean_shots_per_class as mean_shots_per_class,
)
from .out_of_fold import (
    out_of_fold as out_of_fold,
)
from .proker import Proker as Proker
from .prototype import Prototype as Prototype
from .rail import Rail as Rail
from .registry import (
    Fidelity as Fidelity,
)
from .registry import (
    create_head as create_head,
)
from .registry import (
    default_parameters as default_parameters,
)
from .registry import (
    fidelity_of as fidelity_of,
)
from .registry import (
    head_info as head_info,
)
from .registry import (
    list_heads as list_heads,
)
from .registry import (
    register_head as register_head,
)
from .rla import Rla as Rla
from .select import Candidate as Candidate
from .select import Selection as Selection
from .select import select as select
from .ss_text import SsText as SsText
from .ss_text_u import SsTextU as SsTextU
from .stata import StatA as StatA
from .support import SupportSet as SupportSet
from .svl_adapter import SvlAdapter as SvlAdapter
from .taskres import TaskRes as TaskRes
from .text import TextFeatures as TextFeatures
from .timo import Timo as Timo
from .tip_adapter import TipAdapter as TipAdapter
from .tip_adapter_f import TipAdapterF as TipAdapterF
from .trained_head import TrainedHead as TrainedHead
from .transclip import TransClip as TransClip
from .zero_shot import ZeroShot as ZeroShot
from .zlap import Zlap as Zlap
from .zs_lp import ZsLp as ZsLp
