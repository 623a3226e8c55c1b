//! placeholder until the lane lands in the next commit
