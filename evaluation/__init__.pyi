from .figures import score_figure as score_figure
from .figures import similarity_figure as similarity_figure
from .metrics import enrichment as enrichment
from .metrics import precision_at_r as precision_at_r
from .scores import Scores as Scores
from .scores import score as score
from .similarity import cosine as cosine
