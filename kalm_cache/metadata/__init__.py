"""Metadata: fields of passages beside id and text, typed and stored by column, and filters over them.

column_types    what a column holds, and which type the values of a corpus have
columns         one segment's columns on disk, by ordinal, memory-mapped
column_writer   values by passage -> a segment's columns
filters         the filter grammar: JSON -> a checked tree -> a mask over a segment's passages
"""

from kalm_cache.metadata.column_types import ColumnType, Scalar, Schema, Value
from kalm_cache.metadata.columns import COLUMNS, Columns
from kalm_cache.metadata.filters import Filter, parse_filter

__all__ = ["COLUMNS", "ColumnType", "Columns", "Filter", "Scalar", "Schema", "Value", "parse_filter"]
