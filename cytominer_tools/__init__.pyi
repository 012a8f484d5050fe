from .errors import InputError as InputError
from .tables import read_table as read_table
from .tables import write_table as write_table
