"""Labelled audio from any of four kinds of corpus, as recordings, as shards, and as decoded clips.

| kind | files | splits |
|---|---|---|
| WebDataset shards | `SPLIT-000.tar`, ...: pairs `KEY.opus` (or any audio) and `KEY.json` | by the shards' names |
| CSV and audio | AudioSet's segments (`# YTID, ...`), or columns `path,labels` | column `split`, or the CSV's name |
| packed HDF5 | `audio_name`, `waveform` int16, `target` bool (N, 527) | by the files' names |
| MUSDB18, MUSDB18-HQ | `train/`, `test/` with stem files or track folders | `train`, `valid`, `test` |

`formats.open_source` recognises them. Files named as AudioSet's are of `train` (`balanced_train`, `unbalanced_train`)
and `test` (`eval`). See the modules `shards`, `csv_tables`, `packed_hdf5` and `musdb18`.

An invalid row does not stop the others: it becomes a `recordings.Fault` with its file and line or its shard and member,
which readers of a corpus report. Labels are AudioSet's, several for each recording, and incomplete.

`decoded.load` decodes a split once for training; `python -m models corpus` packs, counts, checks and lists corpora.
"""
