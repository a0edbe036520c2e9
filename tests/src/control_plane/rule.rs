//! What is to go wrong with which requests.

use std::time::Duration;

use super::Request;

/// What the proxy does with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Forwards it this much later.
    Delay(Duration),
    /// Forwards it, and closes the connection instead of answering.
    DropAnswer,
    /// Forwards it, and never answers.
    Silence,
    /// Forwards it twice, one after the other, as what repeats requests on their way does. The second answer counts.
    Twice,
    /// Answers it itself.
    Answer {
        /// The status.
        status: u16,
        /// `Retry-After`, in seconds.
        retry_after: Option<u32>,
    },
    /// Never answers it. [`ApiProxy::deliver`](super::ApiProxy::deliver) forwards it later, whether the client still waits or not.
    Keep,
    /// Forwards it after [`ApiProxy::release`](super::ApiProxy::release).
    Pause,
}

/// Which requests something is done with: all that match what is given.
#[derive(Debug, Clone)]
pub struct Rule {
    verb: &'static str,
    resource: &'static str,
    name_ends: Option<String>,
    client: Option<String>,
    /// The first and the last of the matching requests that it counts for, from 1.
    which: (usize, usize),
    matched: usize,
    act: Act,
}

// === impl Rule ===

impl Rule {
    /// Does `act` with every request of this verb to this resource (`*` = whatever).
    #[must_use]
    pub const fn new(verb: &'static str, resource: &'static str, act: Act) -> Self {
        Self { verb, resource, name_ends: None, client: None, which: (1, usize::MAX), matched: 0, act }
    }

    /// Only with the first one.
    #[must_use]
    pub const fn once(self) -> Self {
        self.nth(1)
    }

    /// Only with the `n`th one from now on, from 1.
    #[must_use]
    pub const fn nth(mut self, n: usize) -> Self {
        self.which = (n, n);
        self
    }

    /// Only with those whose object's name ends like this.
    #[must_use]
    pub fn named(mut self, end: &str) -> Self {
        self.name_ends = Some(end.to_owned());
        self
    }

    /// Only with those of this client.
    #[must_use]
    pub fn from(mut self, client: &str) -> Self {
        self.client = Some(client.to_owned());
        self
    }

    /// What it does with this request, which counts if it matches.
    pub(super) fn apply(&mut self, request: &Request) -> Option<Act> {
        if !self.matches(request) {
            return None;
        }
        self.matched += 1;
        let (first, last) = self.which;
        (first..=last).contains(&self.matched).then_some(self.act)
    }

    fn matches(&self, request: &Request) -> bool {
        let is = |wanted: &str, found: &str| wanted == "*" || wanted == found;
        is(self.verb, request.verb)
            && is(self.resource, &request.resource)
            && self.client.as_ref().is_none_or(|client| *client == request.client)
            && self
                .name_ends
                .as_ref()
                .is_none_or(|end| request.name.as_ref().is_some_and(|n| n.ends_with(end)))
    }
}
