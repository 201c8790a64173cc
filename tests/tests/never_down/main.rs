//! Never down: the agent is replaced, killed, stopped, starved and misled, and what it enforces is enforced all the while.

mod agent;
mod bundle;
mod churn;
mod clock;
mod layouts;
mod limits;
mod places;
mod rotation;
mod stage;
mod upgrade;
mod upgrade_fails;
