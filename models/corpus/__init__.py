"""Labelled audio from any of four kinds of corpus, as recordings, as shards, and as decoded clips.

| kind | what lies there | splits |
|---|---|---|
| WebDataset shards | `SPLIT-000.tar`, ...: pairs `KEY.opus` (or any audio) and `KEY.json` | by the shards' names |
| CSV and audio | AudioSet's segments (`# YTID, ...`), or columns `path,labels` | column `split`, or the CSV's name |
| packed HDF5 | `audio_name`, `waveform` int16, `target` bool (N, 527) | by the files' names |
| MUSDB18, MUSDB18-HQ | `train/`, `test/` with stem files or track folders | `train`, `valid`, `test` |

`sources.open_source` tells them apart. Files named as AudioSet's are of `train` (`balanced_train`, `unbalanced_train`)
and `test` (`eval`). Each kind's file says the rest: `shards`, `tables`, `packed`, `musdb18`.

What is wrong with a row never stops the others: it is a `recordings.Fault`, with its file and line or its shard and
member, and whoever reads a corpus reports them. Labels are AudioSet's, several a recording, and never all that is true.

`decoded.load` decodes a split once for training; `python -m models corpus` packs, counts, checks and lists corpora.
"""
