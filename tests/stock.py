"""``fairseq-train`` with stock fairseq's encoder layers: no more is patched than lets it run."""

from fairseq_ray_plugin import compat

compat.apply(skip={"encoder_copies"})

if __name__ == "__main__":
    from fairseq_cli.train import cli_main

    cli_main()
