from .backend import calibrations_of_passes as calibrations_of_passes
from .backend import precision_fingerprint as precision_fingerprint
from .backend import with_backend as with_backend
from .base import Encoder as Encoder
from .base import EncoderInfo as EncoderInfo
from .base import TorchEncoder as TorchEncoder
from .block_encoder import BlockEncoder as BlockEncoder
from .block_encoder import LayerEncoder as LayerEncoder
from .block_encoder import complete_passes as complete_passes
from .block_encoder import create_encoder as create_encoder
from .block_encoder import describe_passes as describe_passes
from .block_encoder import open_blocks as open_blocks
from .block_encoder import plain_encoder as plain_encoder
from .block_encoder import select_encoder_blocks as select_encoder_blocks
from .block_encoder import unprojected_blocks as unprojected_blocks
from .catalogue import EncoderListing as EncoderListing
from .layers import AttentionLayer as AttentionLayer
from .layers import attention_layers as attention_layers
from .registry import (
    check_encoder as check_encoder,
)
from .registry import (
    check_uri as check_uri,
)
from .registry import (
    encoder_info as encoder_info,
)
from .registry import (
    list_encoders as list_encoders,
)
from .registry import (
    list_listings as list_listings,
)
from .registry import (
    open_prompt_places as open_prompt_places,
)
from .registry import (
    open_text_tower as open_text_tower,
)
from .registry import (
    open_tunable_copy as open_tunable_copy,
)
from .registry import (
    register_encoder as register_encoder,
)
from .registry import (
    split_blocks as split_blocks,
)
