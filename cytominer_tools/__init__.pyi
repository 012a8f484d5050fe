from .errors import InputError as InputError
from .errors import ProfileWarning as ProfileWarning
from .frames import aggregate as aggregate
from .frames import consensus as consensus
from .frames import spherize as spherize
from .tables import read_table as read_table
from .tables import write_table as write_table
from .transformers import Spherize as Spherize
