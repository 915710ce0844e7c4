//! The table: rows with a naive reference, a file a family. PyTorch's golden cases are added to them.

mod attention;
mod elementwise;
mod images;
mod index;
mod loss;
mod matmul;
mod moves;
mod norm;
mod pool;
mod recurrent;
mod reduce;
mod shape;

use crate::row::Row;

pub(crate) fn all() -> Vec<Row> {
    [
        attention::all(),
        elementwise::all(),
        images::all(),
        index::all(),
        loss::all(),
        matmul::all(),
        moves::all(),
        norm::all(),
        pool::all(),
        recurrent::all(),
        reduce::all(),
        shape::all(),
    ]
    .concat()
}
