//! The composition root of the cluster agent.
