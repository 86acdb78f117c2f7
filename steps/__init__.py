"""The work: one step of the pipeline, one file, one main()."""
