# The whole paper, run by run: `make paper`; `make paper scale=imagenet imagenet=DIR …` is the real thing (docs/paper.md).
# A target is a run's results.json: what is there is not made again, an interrupted training goes on where it stopped.
scale ?= laptop
PAPER := outputs/paper/$(scale)
TRAIN := $(BIN)/python train.py
LOOK := $(BIN)/python analyze.py logger=none
MEMBERS := 1 2 3 4 5 6
# Rows of Table 3 that are not members already, as the network of Fig. 3 and the wide one are.
ROWS := alexnet alexnet_without_3_4 alexnet_without_7 alexnet_without_6_7 alexnet_without_3_4_6_7 alexnet_fc2048 \
	alexnet_fc8192 zfnet_fc2048 zfnet_fc8192 zfnet_wide_fc8192

# What the two scales train, on what, and where features go.
ifeq ($(scale),laptop)
# The phantom stands for ImageNet; five of its classes are learned first, the other five stand for Caltech. Units and maps
# are an eighth to a third of the paper's, images 80 px, 6 epochs (conf/scale/laptop.yaml).
# The seeds are those of the claims' designs (src/zfscope/report/designs.yaml): of members 1 to 5, then of the wide one.
MEMBER_SEEDS := 10 11 12 13 14 15
SEEDS := 10 11 12 13 14
RADIUS_SEEDS := 10 11 12 13 14 15 16
TRANSFER_SEEDS := 10 11 12 13 14 15 16
ELPV_SEEDS := 10 11 12
# Two runs side by side, one thread each, are faster than one run of two threads.
jobs ?= 2
paper-runs: export OMP_NUM_THREADS ?= 1
ON := scale=laptop data=phantom callbacks=none logger=none
ZFNET := model=zfnet_mini
WIDE := model=zfnet_mini_wide
ALEXNET := model=alexnet_mini
FC2048 := model.fc6.units=256 model.fc7.units=256
FC8192 := model.fc6.units=1024 model.fc7.units=1024
PRETRAIN := data.classes=[face,cat,rabbit,car,clock] optim.epochs=8
# Where filters may grow: the paper's inputs (grey levels) and SGD; the radius ten times the start of conv1, as in the paper.
GROWING := model.input_scale=1.0 model.init.first=0.05 optim.name=sgd optim.lr=0.03 optim.momentum=0.9 \
	optim.nesterov=false optim.weight_decay=5e-4 optim.label_smoothing=0 optim.epochs=4
RADIUS := 0.06
TARGETS := phantom
TO_phantom := data=phantom data.classes=[dog,owl,fish,bicycle,flower] analysis.test_images=200
TRANSFER := analysis.images_per_class=[6,15,30,60] analysis.scratch_folds=1
OCCLUSION := analysis.part=test analysis.images=100 analysis.shown=3 analysis.top=0
CORRESPONDENCE := analysis.images=20
FACES := yes
DRAWN := $(PAPER)/phantom
ELPV := $(wildcard .venv/lib/python*/site-packages/elpv_dataset)
else ifeq ($(scale),imagenet)
jobs ?= 1
MEMBER_SEEDS := 0 1 2 3 4 5
SEEDS := 0 1 2
RADIUS_SEEDS := 0 1 2
TRANSFER_SEEDS := 0 1 2
ON := data.root=$(imagenet) trainer=gpu
ZFNET := model=zfnet data=imagenet
PRETRAIN := data.exclude=$(PAPER)/exclude.txt
TARGETS := $(if $(caltech101),caltech101) $(if $(caltech256),caltech256) $(if $(voc2012),voc2012)
TO_caltech101 := data=caltech101 data.root=$(caltech101)
TO_caltech256 := data=caltech256 data.root=$(caltech256)
TO_voc2012 := data=voc2012 data.root=$(voc2012)
OCCLUSION := analysis.images=100
CORRESPONDENCE := analysis.boxes=$(faces)
FACES := $(faces)
else
$(error scale=$(scale): there are laptop and imagenet)
endif

result = $(addprefix $(PAPER)/,$(addsuffix /results.json,$(1)))
members := $(call result,$(addprefix members/,$(MEMBERS)))
table3 := $(call result,$(addprefix table3/,$(ROWS)))
looks := evolution invariance occlusion diagnostics $(if $(FACES),correspondence)
looked := $(call result,$(foreach look,$(looks),$(addprefix $(look)/,$(SEEDS))))
stems := $(call result,$(addprefix stem_diagnostics/,$(SEEDS)))
radius := $(call result,$(foreach kind,$(if $(RADIUS),bounded) unbounded,$(addprefix $(kind)_diagnostics/,$(RADIUS_SEEDS))))
moved := $(call result,$(foreach to,$(TARGETS),$(addprefix transfer/$(to)/,$(TRANSFER_SEEDS)))\
	$(foreach to,$(filter-out voc2012,$(TARGETS)),$(addprefix probes/$(to)/,$(TRANSFER_SEEDS))))
elpv := $(if $(ELPV),$(call result,$(addprefix elpv_transfer/,$(ELPV_SEEDS))))

# Train with these overrides, or go on where it was interrupted.
train = $(TRAIN) $(if $(wildcard $(@D)/checkpoints),resume=$(@D),$(1) hydra.run.dir=$(@D))
look = $(LOOK) analysis=$(1) checkpoint=$(<D)$(2) hydra.run.dir=$(@D)
# What is looked into, not compared by its error.
UNTESTED = $(ON) evaluate.enabled=false

.PHONY: paper paper-runs
# A run that fails stops none of the others; the ledger has what is there.
paper: .venv/installed
ifeq ($(scale),imagenet)
	@test -n "$(imagenet)" || { echo "make: scale=imagenet needs imagenet=DIR, and caltech101=DIR caltech256=DIR voc2012=DIR faces=CSV for their tables; make -n paper scale=imagenet imagenet=DIR shows the commands"; exit 2; }
endif
	-$(MAKE) --no-print-directory -k -j$(jobs) paper-runs
	$(LOOK) analysis=ledger analysis.runs=[$(PAPER)] hydra.run.dir=$(PAPER)/ledger
	@echo "open $(PAPER)/ledger/ledger.html"
	@for result in $(results); do test -f $$result || { echo "make: there is no $$result; its run failed"; missing=1; }; done; test -z "$$missing"

# What takes longest by itself comes first, so that at the end no run is left alone.
results := $(moved) $(elpv) $(members) $(table3) $(looked) $(call result,ensemble) $(stems) $(radius)
paper-runs: $(results)

# Drawn before two runs would draw it at once.
$(PAPER)/phantom:
	$(BIN)/python -c "from zfscope.data.sources.phantom import open_phantom; [part.ready() for part in open_phantom('data_cache/phantom').parts.values()]"
	mkdir -p $(@D) && touch $@

# Table 2: five networks of Fig. 3 and a wide one.
$(PAPER)/members/%/results.json: | $(DRAWN)
	$(call train,experiment=table3_zfnet$(if $(filter 6,$*),_wide) $(ON) $(if $(filter 6,$*),$(WIDE),$(ZFNET)) seed=$(word $*,$(MEMBER_SEEDS)))

$(PAPER)/table3/%/results.json: | $(DRAWN)
	$(call train,experiment=table3_$* $(ON) $(if $(filter alexnet%,$*),$(ALEXNET),$(if $(findstring wide,$*),$(WIDE),$(ZFNET))) $(if $(findstring fc2048,$*),$(FC2048)) $(if $(findstring fc8192,$*),$(FC8192)))

# The talk's other stem; with and without the filters' radius; without the classes or images held out.
$(PAPER)/stem/%/results.json: | $(DRAWN)
	$(call train,$(UNTESTED) $(ZFNET) model/stem=11x11s4 seed=$*)

$(PAPER)/bounded/%/results.json: | $(DRAWN)
	$(call train,$(UNTESTED) $(ZFNET) $(GROWING) model.filter_rms=$(RADIUS) seed=$*)

$(PAPER)/unbounded/%/results.json: | $(DRAWN)
	$(call train,$(UNTESTED) $(ZFNET) $(GROWING) model.filter_rms=null seed=$*)

$(PAPER)/pretrained/%/results.json: $(if $(filter imagenet,$(scale)),$(PAPER)/exclude.txt) | $(DRAWN)
	$(call train,$(UNTESTED) $(ZFNET) $(PRETRAIN) seed=$*)

$(PAPER)/exclude.txt: $(call result,$(addprefix overlap/,$(filter caltech%,$(TARGETS))))
	cat $(addsuffix /exclude.txt,$(^D)) /dev/null > $@

$(PAPER)/overlap/%/results.json:
	$(LOOK) analysis=overlap data=imagenet data.root=$(imagenet) data@analysis.other=$* analysis.other.root=$($*) hydra.run.dir=$(@D)

$(PAPER)/ensemble/results.json: $(members)
	$(LOOK) analysis=ensemble 'checkpoint=$(PAPER)/members/*' analysis.members=6 hydra.run.dir=$(@D)

# What is looked into are members: seed and number.
define looking
$(PAPER)/evolution/$(1)/results.json: $(PAPER)/members/$(2)/results.json
	$$(call look,evolution)
$(PAPER)/invariance/$(1)/results.json: $(PAPER)/members/$(2)/results.json
	$$(call look,invariance)
$(PAPER)/occlusion/$(1)/results.json: $(PAPER)/members/$(2)/results.json
	$$(call look,occlusion) $(OCCLUSION)
$(PAPER)/correspondence/$(1)/results.json: $(PAPER)/members/$(2)/results.json
	$$(call look,correspondence) $(CORRESPONDENCE)
$(PAPER)/diagnostics/$(1)/results.json: $(PAPER)/members/$(2)/results.json
	$$(call look,diagnostics)
endef
$(foreach number,$(MEMBERS),$(eval $(call looking,$(word $(number),$(MEMBER_SEEDS)),$(number))))

$(PAPER)/stem_diagnostics/%/results.json: $(PAPER)/stem/%/results.json
	$(call look,diagnostics)

# The last epoch, not the best: how far filters have grown.
$(PAPER)/bounded_diagnostics/%/results.json: $(PAPER)/bounded/%/results.json
	$(call look,diagnostics,/last)

$(PAPER)/unbounded_diagnostics/%/results.json: $(PAPER)/unbounded/%/results.json
	$(call look,diagnostics,/last)

define moving
$(PAPER)/transfer/$(1)/%/results.json: $(PAPER)/pretrained/%/results.json
	$$(call look,transfer) $(TO_$(1)) $(TRANSFER) analysis.seed=$$*
$(PAPER)/probes/$(1)/%/results.json: $(PAPER)/pretrained/%/results.json
	$$(call look,probes) $(TO_$(1)) analysis.seed=$$*
endef
$(foreach to,$(TARGETS),$(eval $(call moving,$(to))))

# Photographs: from monocrystalline to polycrystalline solar cells.
$(PAPER)/elpv/%/results.json:
	$(call train,experiment=elpv_mono scale=laptop optim.lr=1e-3 optim.epochs=40 evaluate.enabled=false callbacks=none logger=none seed=$*)

$(PAPER)/elpv_transfer/%/results.json: $(PAPER)/elpv/%/results.json
	$(call look,transfer) data.cells=poly analysis.seed=$* analysis.images_per_class=[15,30,60,120] analysis.folds=3 analysis.test_images=null analysis.scratch_folds=1

# Real images, and what public networks see: `make transfer`, which `make paper` does not (docs/transfer.md).
# Every network learns the same folds of elpv and, where its files are, of Fashion-MNIST: fashion_mnist=DIR.
fashion_mnist ?= $(wildcard /usr/share/datasets/fashion-mnist)
MOVED := outputs/transfer
REAL := $(strip $(if $(wildcard .venv/lib/python*/site-packages/elpv_dataset),elpv) $(if $(fashion_mnist),fashion_mnist))
DATA_elpv := data=elpv
DATA_fashion_mnist := data=fashion_mnist data.root=$(fashion_mnist)
CONTROL := analysis.random_weights=true
ONTO_elpv := $(DATA_elpv) analysis.test_images=null $(CONTROL)
ONTO_fashion_mnist := $(DATA_fashion_mnist) analysis.test_images=200
FOLDS := analysis.folds=3 analysis.images_per_class
PUBLIC := squeezenet1_1 efficientnet_lite0
# The first layer and the last one below the classes.
ENDS_squeezenet1_1 := [features.3,features.12]
ENDS_efficientnet_lite0 := [blocks.0,blocks.6]
PHOTOGRAPHS := $(firstword $(REAL))
public := $(foreach look,$(if $(REAL),invariance probes) occlusion correspondence,$(addprefix $(look)/,$(PUBLIC)))
learned := $(foreach to,$(REAL),$(addprefix $(to)/,zfnet_mini $(PUBLIC) squeezenet1_1_scratch))
transfers := $(addprefix $(MOVED)/,$(addsuffix /results.json,$(learned) $(public)))

.PHONY: transfer transfer-runs
transfer: .venv/installed
	-$(MAKE) --no-print-directory -k -j2 transfer-runs
	$(LOOK) analysis=ledger analysis.runs=[$(MOVED)] hydra.run.dir=$(MOVED)/ledger
	@echo "open $(MOVED)/ledger/ledger.html"
	@for result in $(transfers); do test -f $$result || { echo "make: there is no $$result; its run failed"; missing=1; }; done; test -z "$$missing"

transfer-runs: export OMP_NUM_THREADS ?= 1
transfer-runs: $(transfers)

$(MOVED)/pretrained/results.json: | $(PAPER)/phantom
	$(call train,scale=laptop data=phantom optim.epochs=8 evaluate.enabled=false callbacks=none logger=none)

define onto
$(addprefix $(MOVED)/$(1)/,$(addsuffix /results.json,$(PUBLIC))): $(MOVED)/$(1)/%/results.json:
	$$(LOOK) analysis=transfer checkpoint=zoo/$$* $(ONTO_$(1)) $(FOLDS)=[5,15,30,60] analysis.scratch=false hydra.run.dir=$$(@D)
$(MOVED)/$(1)/zfnet_mini/results.json: $(MOVED)/pretrained/results.json
	$$(LOOK) analysis=transfer checkpoint=$$(<D) $(ONTO_$(1)) $(FOLDS)=[5,15,30,60] hydra.run.dir=$$(@D)
# At one number of images: a step of it takes as long as two of zfnet_mini.
$(MOVED)/$(1)/squeezenet1_1_scratch/results.json: $(MOVED)/$(1)/squeezenet1_1/results.json
	$$(LOOK) analysis=transfer checkpoint=zoo/squeezenet1_1 $(ONTO_$(1)) $(FOLDS)=[60] analysis.scratch_image_size=80 analysis.scratch_steps=500 hydra.run.dir=$$(@D)
endef
$(foreach to,elpv fashion_mnist,$(eval $(call onto,$(to))))

# The parts of faces are known on the phantom alone. With 100 masks, the default, it would take an hour in float64.
$(MOVED)/probes/%/results.json:
	$(LOOK) analysis=probes checkpoint=zoo/$* $(DATA_$(PHOTOGRAPHS)) analysis.folds=3 $(CONTROL) hydra.run.dir=$(@D)
$(MOVED)/invariance/%/results.json:
	$(LOOK) analysis=invariance checkpoint=zoo/$* $(DATA_$(PHOTOGRAPHS)) analysis.images=32 $(CONTROL) hydra.run.dir=$(@D)
$(MOVED)/occlusion/%/results.json:
	$(LOOK) analysis=occlusion checkpoint=zoo/$* image=docs/cat.jpg $(CONTROL) hydra.run.dir=$(@D)
$(MOVED)/correspondence/%/results.json: | $(PAPER)/phantom
	$(LOOK) analysis=correspondence checkpoint=zoo/$* data=phantom analysis.layers=$(ENDS_$*) analysis.images=20 analysis.masks=20 $(CONTROL) hydra.run.dir=$(@D)

# Intermediate runs are results too.
.SECONDARY:
