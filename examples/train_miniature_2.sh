#!/usr/bin/env bash
# Train every part of a miniature of StoryWorld's second edition: examples/train_miniature_2.sh FOLDER [key=value …]
# The parts gather in FOLDER, a model folder, as they finish; their runs are beside it, in FOLDER.runs. The same command
# resumes. More settings hold for every training, for example trainer=gpu.
set -euo pipefail

folder=${1:?name the folder of the model, then settings of every training}
shift
settings=("$@")
runs=$folder.runs
repository=$(cd "$(dirname "$0")/.." && pwd)
python=$repository/.venv/bin/python
[[ -x $python ]] || python=python

train() { # NAME key=value …: train once; FOLDER gets what was trained
    local name=$1
    shift
    [[ -e $runs/$name/done ]] && return
    mkdir -p "$runs/$name"
    echo "== $name"
    "$python" "$repository/train.py" "$@" run_dir="$runs/$name" export="$folder" "${settings[@]}"
    touch "$runs/$name/done"
}

if [[ ! -e $folder ]]; then # the image networks start from those of the first edition
    mkdir -p "$runs"
    cp -r "$repository/src/storydiffusion/miniature" "$runs/first_edition"
    mv "$runs/first_edition" "$folder"
fi

images=(miniature="$folder")
clips=(model.path="$folder" data.storyworld.edition=2)
for part in image_encoder motion_adapter; do
    clips+=(model.video.$part="$folder/$part")
done
predictor=(predictor=miniature_tokens predictor.tokens_per_frame=40 predictor.start="$folder/predictor")

train attribute_classifier experiment=storyworld_attribute_classifier_2 "${images[@]}"
train image_encoder experiment=storyworld_conv_clip_2 "${images[@]}"
train autoencoder experiment=storyworld_autoencoder_2 "${images[@]}"
train text2image experiment=storyworld_text2image_2 "${images[@]}"
train decoder experiment=storyworld_autoencoder_decoder_2 "${images[@]}" # last, because it changes nothing for the U-Net
train motion experiment=storyworld_motion "${clips[@]}" model.video.motion_adapter=null
train tokens experiment=storyworld_tokens_2 "${clips[@]}"
train predictor experiment=storyworld_predictor "${clips[@]}" "${predictor[@]}"
train follow_tokens experiment=storyworld_follow_tokens "${clips[@]}" model.video.predictor="$folder/predictor"
train emotion_probe experiment=storyworld_emotion_probe "${images[@]}"
train trained_csa experiment=storyworld_trained_csa "${images[@]}"
