from ._change import ChangeDetector as ChangeDetector
from ._files_of_scores import Block as Block
from ._files_of_scores import LogitsFile as LogitsFile
from ._files_of_scores import describe_file as describe_file
from ._files_of_scores import read_batches as read_batches
from ._history import FollowTheHistory as FollowTheHistory
from ._online import OnlineGradient as OnlineGradient
from ._passes import estimate_files as estimate_files
from ._passes import estimate_on_cluster as estimate_on_cluster
from ._streaming import StreamingPrior as StreamingPrior

__all__: list[str]
