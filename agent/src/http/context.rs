//! What the reading of a connection works with.

use std::sync::Arc;

use super::Settings;
use super::counts::{Counter, Counts};
use super::credential::CredentialKey;
use super::exchange::Exchange;
use crate::flow::Chunk;
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// What a connection works with and where its results go.
pub struct Context<'a> {
    pub settings: &'a Settings,
    pub key: &'a CredentialKey,
    /// Its time and addresses; the bytes come as a [`Piece`].
    pub chunk: &'a Chunk<'a>,
    /// JA4 of the connection's client.
    pub ja4: Option<Arc<str>>,
    pub output: Output<'a>,
}

pub struct Output<'a> {
    pub counts: &'a mut Counts,
    pub transactions: &'a mut Vec<Transaction>,
}

impl Output<'_> {
    /// Hands on a transaction, as far as it is known at `now`.
    pub fn emit(&mut self, exchange: Exchange, now: Timestamp) {
        self.counts.one(Counter::Transactions);
        self.transactions.push(exchange.finish(now));
    }
}
