"""Boards: what the hardware is, and what a model would cost there."""

from edgelean.board.load import board_names as board_names
from edgelean.board.load import load_board as load_board
from edgelean.board.model import Board as Board
from edgelean.board.model import Fact as Fact
from edgelean.board.model import Precision as Precision
