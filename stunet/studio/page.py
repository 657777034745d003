"""The page: a tab for each application. All that knows Gradio is here.

Components hand over what the browser sent (`preprocess=False`): what is wrong with it is for our
own checks to say.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from stunet import engine as pipeline
from stunet.errors import UserError
from stunet.studio import results
from stunet.studio.jobs import Cancelled, Queue
from stunet.studio.making import Request, make
from stunet.studio.models import Models
from stunet.studio.uploads import (
    Limits,
    canvas,
    check_upload,
    painted_mask,
    real_number,
    received,
    whole_number,
)
from stunet.weights.style import DEFAULT_STRENGTH, MAX_STRENGTH

PAINTED, FROM_FILE, AROUND = "painted here", "from a file", "around the video"
SIDES = ("left", "right", "top", "bottom")
TABS = {
    "generate": "A video of a prompt.",
    "animate": "A video that begins with an image.",
    "interpolate": "A video from a first image to a last.",
    "inpaint": "What a mask covers of a video is made anew, or what lies around it.",
    "cinemagraph": "A part of an image moves, and nothing else.",
    "edit": "A video is made over to the prompt.",
    "upscale": "A video is enlarged.",
}
# Fonts of the machine: the page needs nothing from elsewhere.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.status progress { width: 100%; height: 0.75rem; appearance: none; border: 0; }
.status progress, .status progress::-webkit-progress-bar {
  background: var(--border-color-primary); border-radius: 4px;
}
.status progress::-webkit-progress-value { background: var(--color-accent); border-radius: 4px; }
.status progress::-moz-progress-bar { background: var(--color-accent); border-radius: 4px; }
.status img { margin-top: 0.5rem; image-rendering: pixelated; border-radius: 4px; }
.status [role=alert] { border-left: 4px solid #b91c1c; padding: 0.5rem 0.75rem; font-weight: 600; }
/* Trimming would load FFmpeg for browsers from elsewhere. */
[title="Trim video to selection"], [title="Reset video to initial value"] { display: none; }
.status ul { margin: 0.25rem 0 0 1.25rem; list-style: disc; }
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Studio:
    """What the page's tabs share.

    Attributes:
      models: to work with.
      jobs: of everybody who has the page open.
      folder: Gradio's, that uploads lie in; results are written to one inside of it.
      limits: of uploads.
    """

    models: Models
    jobs: Queue
    folder: Path
    limits: Limits

    @property
    def results(self) -> Path:
        """Where results are written to."""
        return self.folder / "results"


def build(studio: Studio) -> gr.Blocks:
    """The page, to be launched."""

    def left(request: gr.Request) -> None:
        studio.jobs.cancel(request.session_hash)

    base = studio.models.base
    what = f"{base.resolution}x{base.resolution} pixels"
    if base.num_frames > 1:
        what = f"{base.num_frames} frames of {what}, {base.fps:g} a second"
    with gr.Blocks(
        title="stunet studio", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(f"# stunet studio\n**{studio.models.names['model']}**: {what}")
        for application in studio.models.applications:
            with gr.Tab(application.capitalize(), id=application):
                gr.Markdown(TABS[application])
                _Tab(studio, application)
        gr.Markdown(f"Uploads: at most {studio.limits}. One job runs at a time.")
        page.unload(left)
    return page


class _Tab:
    """One application: its inputs at the left, its result at the right (below, where narrow)."""

    def __init__(self, studio: Studio, application: str):
        self.studio, self.application = studio, application
        self.fields: dict[str, gr.components.Component] = {}
        with gr.Row():
            with gr.Column(min_width=300):
                self._inputs()
                with gr.Row():
                    start = gr.Button("Make it", variant="primary", min_width=100)
                    self.cancel = gr.Button("Cancel", interactive=False, min_width=100)
            with gr.Column(min_width=300):
                # Apart from the job's status: a check may end after the job that followed it.
                self.refusal = gr.HTML(elem_classes="status", elem_id=f"{application}-refusal")
                self.status = gr.HTML(elem_classes="status", elem_id=f"{application}-status")
                with gr.Column(visible=False) as self.result:
                    self.video = gr.Video(
                        label="Result",
                        elem_id=f"{application}-result",
                        interactive=False,
                        autoplay=True,
                        loop=True,
                        height=400,
                        buttons=[],
                    )
                    self.download = gr.DownloadButton("Download the MP4")
                    self.slice = gr.Image(
                        label="X-T slice: the middle row of pixels, time running down",
                        interactive=False,
                        buttons=["fullscreen"],
                        alt_text="X-T slice",
                    )
                    self.settings = gr.JSON(
                        label="Settings, in the MP4's comment too", open=True, buttons=["copy"]
                    )
        self._events(start)

    # --- what is asked for

    def _inputs(self) -> None:
        application, fields, models = self.application, self.fields, self.studio.models
        fields["prompt"] = gr.Textbox(
            label="Prompt", placeholder="what the video shows", elem_classes="prompt"
        )
        if application in ("animate", "interpolate", "cinemagraph"):
            label = "First image" if application == "interpolate" else "Image"
            self._file("image", gr.Image, label)
        if application == "interpolate":
            self._file("last", gr.Image, "Last image")
        if application in ("inpaint", "edit", "upscale"):
            self._file("video", gr.Video, "Video")
        if application in ("inpaint", "cinemagraph"):
            self._mask()
        if application == "cinemagraph":
            fields["loop"] = gr.Checkbox(label="Lead back to the first frame (loop)")
        if application == "edit":
            fields["strength"] = gr.Slider(
                0,
                1,
                0.7,
                step=0.05,
                label="Strength",
                info="0 leaves the video as it is, 1 does not see it",
            )
        if application != "upscale":
            if models.style is not None:
                fields["style_strength"] = gr.Slider(
                    0,
                    MAX_STRENGTH,
                    0,
                    step=0.05,
                    label="Style strength",
                    info=f"of {models.names['style']}; 0 is without, {DEFAULT_STRENGTH} usual",
                )
            if models.upscalers:
                fields["enlarge"] = gr.Checkbox(True, label=f"Enlarge {models.factor} times")
        with gr.Row():
            fields["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
            if models.base.num_frames > 1 and application in (
                "generate",
                "animate",
                "interpolate",
                "cinemagraph",
            ):
                fields["num_frames"] = gr.Number(
                    0,
                    label=f"Frames (0 is {models.base.num_frames})",
                    precision=0,
                    minimum=0,
                    min_width=100,
                )
        steps = pipeline.DEFAULT_STEPS[pipeline.Sampling.sampler]
        if application == "upscale":
            steps = models.upscalers[0].super_resolution.steps or steps
        fields["steps"] = gr.Slider(1, 100, steps, step=1, label="Steps")
        fields["guidance_scale"] = gr.Slider(
            1, 12, pipeline.Sampling.guidance_scale, step=0.5, label="Guidance scale"
        )
        for name, field in fields.items():
            field.elem_id = f"{application}-{name}"

    def _file(self, name: str, kind: type, label: str) -> None:
        options = {"sources": ["upload"], "height": 240, "buttons": []}
        if kind is gr.Image:
            options["type"] = "filepath"
        self.fields[name] = kind(label=label, **options)

    def _mask(self) -> None:
        """Of what is made anew: painted on the first frame, a file, or (of a video) its margins."""
        video = self.application == "inpaint"
        choices = [PAINTED, FROM_FILE, *([AROUND] if video else [])]
        self.fields["region"] = region = gr.Radio(
            choices, value=PAINTED, label="What is made" if video else "What moves"
        )
        self.fields["painting"] = painting = gr.ImageEditor(
            label="Paint over it",
            type="pil",
            sources=[],
            transforms=[],
            layers=False,
            brush=gr.Brush(default_size=40, colors=["rgba(255, 0, 255, 0.6)"], color_mode="fixed"),
            buttons=[],
            canvas_size=(448, 448),
            height=460,
            placeholder=f"Upload {'a video' if video else 'an image'} first",
        )
        also = ", or a video for each frame's own" if video else ""
        self.fields["mask"] = mask = gr.File(
            label=f"Mask: white is made, black is kept; an image of the same size{also}",
            visible=False,
        )
        shown = {PAINTED: painting, FROM_FILE: mask}
        if video:
            with gr.Row(visible=False) as shown[AROUND]:
                for side in SIDES:
                    self.fields[side] = gr.Number(
                        0,
                        label=f"Pixels {side}",
                        precision=0,
                        minimum=0,
                        min_width=100,
                    )
        region.change(
            lambda chosen: [gr.update(visible=name == chosen) for name in shown],
            region,
            list(shown.values()),
            queue=False,
            api_visibility="private",
        )

    # --- what happens

    def _events(self, start: gr.Button) -> None:
        private = {"api_visibility": "private", "show_progress": "hidden"}
        raw = {**private, "preprocess": False, "concurrency_limit": None}
        outputs = [
            self.status,
            self.cancel,
            self.result,
            self.video,
            self.download,
            self.slice,
            self.settings,
        ]
        gr.on(
            [start.click, self.fields["prompt"].submit],
            self._run,
            list(self.fields.values()),
            [*outputs, self.refusal],
            **raw,
        )
        self.cancel.click(self._cancel, queue=False, **private)
        for name in ("image", "last", "video", "mask"):
            if name in self.fields:
                painting = self.fields.get("painting") if name in ("image", "video") else None
                self._checked(self.fields[name], painting, raw)

    def _checked(
        self,
        field: gr.components.Component,
        painting: gr.ImageEditor | None,
        options: dict[str, Any],
    ) -> None:
        """Checks a file as soon as it is there, and puts it under the painting."""

        def uploaded(sent: dict[str, Any]) -> Iterator[dict]:
            try:
                path = received(sent, self.studio.folder)
                check_upload(path, self.studio.limits)
                shown = None if painting is None else canvas(path)
            except UserError as error:
                emptied = {one: None for one in (field, painting) if one is not None}
                yield {**emptied, self.refusal: results.message_html(str(error))}
                raise gr.Error(str(error), print_exception=False) from None
            yield {self.refusal: "", **({} if painting is None else {painting: shown})}

        changed = [field, self.refusal, *([] if painting is None else [painting])]
        field.upload(uploaded, field, changed, **options)

        def cleared() -> dict:
            return {self.refusal: "", **({} if painting is None else {painting: None})}

        field.clear(cleared, None, changed[1:], queue=False, **options)

    def _run(self, request: gr.Request, *sent: Any) -> Iterator[dict]:
        fps = self.studio.models.base.fps or 1.0
        try:
            asked = self._request(dict(zip(self.fields, sent, strict=True)))

            def work(report: Any) -> tuple:
                made = make(self.studio.models, asked, report)
                return made, results.write_result(made, self.studio.results)

            job = self.studio.jobs.add(work, request.session_hash, self.application)
            try:
                for progress in job.updates():
                    yield {
                        self.status: results.progress_html(progress, fps),
                        self.cancel: gr.update(interactive=True),
                        self.result: gr.update(visible=False),
                        self.refusal: "",
                    }
            finally:
                job.cancel()  # whoever has left before it was in the line; else it has ended
            made, files = job.result()
        except Cancelled:
            yield self._ended('<div role="status">cancelled</div>')
        except UserError as error:
            yield self._ended(results.message_html(str(error)))
            raise gr.Error(str(error), print_exception=False) from None
        else:
            yield {
                self.status: results.remarks_html(made.remarks),
                self.cancel: gr.update(interactive=False),
                self.result: gr.update(visible=True),
                self.video: str(files.video),
                self.download: str(files.video),
                self.slice: gr.update(
                    value=files.xt_slice and str(files.xt_slice),
                    visible=files.xt_slice is not None,
                ),
                self.settings: made.settings,
            }

    def _ended(self, status: str) -> dict:
        return {self.status: status, self.cancel: gr.update(interactive=False), self.refusal: ""}

    def _cancel(self, request: gr.Request) -> None:
        self.studio.jobs.cancel(request.session_hash, self.application)

    def _request(self, sent: dict[str, Any]) -> Request:
        """What the components hold, as a request.

        Raises:
          UserError: something is missing, or out of bounds.
        """
        values: dict[str, Any] = {
            "prompt": sent["prompt"] or "",
            "seed": whole_number("seed", sent["seed"], 0, 2**32 - 1),
            "steps": whole_number("steps", sent["steps"], 1, 500),
            "guidance_scale": real_number("guidance scale", sent["guidance_scale"], 0, 100),
        }
        if "num_frames" in sent:
            most = self.studio.limits.frames
            values["num_frames"] = whole_number("frames", sent["num_frames"] or 0, 0, most) or None
        for name in ("image", "last", "video"):
            if name in sent:
                values[name] = self._given(sent[name], str(self.fields[name].label))
        if "strength" in sent:
            values["strength"] = real_number("strength", sent["strength"], 0, 1)
        if "style_strength" in sent:
            strength = real_number("style strength", sent["style_strength"], 0, MAX_STRENGTH)
            values["style_strength"] = strength
        for name in ("enlarge", "loop"):
            if name in sent:
                values[name] = bool(sent[name])
        if "region" in sent:
            values |= self._region(sent, values.get("image") or values["video"])
        return Request(application=self.application, **values)

    def _region(self, sent: dict[str, Any], picture: Path) -> dict[str, Any]:
        """The mask that is chosen, or the margins."""
        if sent["region"] == FROM_FILE:
            return {"mask": self._given(sent["mask"], "mask")}
        if sent["region"] == AROUND:
            margins = tuple(whole_number(f"pixels {side}", sent[side], 0, 4096) for side in SIDES)
            if not any(margins):
                raise UserError(
                    "pixels left, right, top and bottom are all 0: nothing is to be made"
                )
            return {"outpaint": margins}
        editor = self.fields["painting"]
        data = editor.data_model.model_validate(sent["painting"] or {})
        for one in (data.background, data.composite, *(data.layers or [])):
            if one is not None:
                received(one.model_dump(), self.studio.folder)
        painting = editor.preprocess(data)
        mask = results.new_folder(self.studio.results) / "painted.png"
        painted_mask(painting["layers"], picture, mask)
        return {"mask": mask}

    def _given(self, sent: Any, what: str) -> Path:
        if sent is None:
            raise UserError(f"upload the {what.lower()} first")
        path = received(sent, self.studio.folder)
        check_upload(path, self.studio.limits)
        return path
