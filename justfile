# The same commands as CI. `just` is optional: every recipe is a script.

# List the recipes.
default:
    @just --list --unsorted

# All tests, or one level: `just test unit`.
test *args:
    bin/test {{args}}

# Format, lints, scripts, licences, dependencies.
lint *args:
    bin/lint {{args}}

# Format the code.
fmt:
    cargo fmt --all

# The whole gate.
ci:
    .ci/run

# One broker in the foreground: `just broker --release trixie`.
broker *args:
    cargo run --package mayfly-tests --bin testbed -- broker {{args}}

# A Kubernetes of our own: `just cluster up`.
cluster *args:
    bin/cluster {{args}}
