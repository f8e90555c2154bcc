"""The codes of the simulated hospital: real code systems, one noun an entry.

LOINC with UCUM units for measurements, RxNorm ingredients for drugs, ICD-10-CM for conditions,
SNOMED CT for procedures. Nothing here decides who gets what; `tsfm.simulation.course` does.
"""

from __future__ import annotations

from dataclasses import dataclass

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
SNOMED = "http://snomed.info/sct"


@dataclass(frozen=True, slots=True)
class Measure:
    """A laboratory analyte or vital sign.

    Attributes:
        loinc: LOINC code.
        display: Its name.
        unit: UCUM unit; empty for a panel, whose components have their own.
        digits: Decimals recorded.
        is_lab: Whether a laboratory releases it later than the specimen was taken.
    """

    loinc: str
    display: str
    unit: str
    digits: int
    is_lab: bool


MEASURES = {
    "creatinine": Measure("2160-0", "Creatinine [Mass/volume] in Serum", "mg/dL", 2, True),
    "sodium": Measure("2951-2", "Sodium [Moles/volume] in Serum", "mmol/L", 0, True),
    "potassium": Measure("2823-3", "Potassium [Moles/volume] in Serum", "mmol/L", 1, True),
    "haemoglobin": Measure("718-7", "Hemoglobin [Mass/volume] in Blood", "g/dL", 1, True),
    "bnp": Measure("33762-6", "NT-proBNP [Mass/volume] in Serum", "pg/mL", 0, True),
    "albumin": Measure("1751-7", "Albumin [Mass/volume] in Serum", "g/dL", 1, True),
    "crp": Measure("1988-5", "C reactive protein [Mass/volume] in Serum", "mg/L", 1, True),
    "leukocytes": Measure("6690-2", "Leukocytes [#/volume] in Blood", "10*3/uL", 1, True),
    "lactate": Measure("2524-7", "Lactate [Moles/volume] in Serum", "mmol/L", 1, True),
    "hba1c": Measure("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", 1, True),
    "heart_rate": Measure("8867-4", "Heart rate", "/min", 0, False),
    "respiratory_rate": Measure("9279-1", "Respiratory rate", "/min", 0, False),
    "temperature": Measure("8310-5", "Body temperature", "Cel", 1, False),
    "oxygen_saturation": Measure("59408-5", "Oxygen saturation by pulse oximetry", "%", 0, False),
    "weight": Measure("29463-7", "Body weight", "kg", 1, False),
    "blood_pressure": Measure("85354-9", "Blood pressure panel", "", 0, False),
}
SYSTOLIC = Measure("8480-6", "Systolic blood pressure", "mm[Hg]", 0, False)
DIASTOLIC = Measure("8462-4", "Diastolic blood pressure", "mm[Hg]", 0, False)

DRUGS = {
    "furosemide": ("4603", "furosemide", 40.0, "mg"),
    "morphine": ("7052", "morphine", 4.0, "mg"),
    "oxycodone": ("7804", "oxycodone", 5.0, "mg"),
    "ceftriaxone": ("2193", "ceftriaxone", 1.0, "g"),
    "vancomycin": ("11124", "vancomycin", 1.0, "g"),
    "prednisone": ("8640", "prednisone", 40.0, "mg"),
    "albuterol": ("435", "albuterol", 2.5, "mg"),
    "heparin": ("5224", "heparin", 5000.0, "[IU]"),
    "metoprolol": ("6918", "metoprolol", 25.0, "mg"),
    "lisinopril": ("29046", "lisinopril", 10.0, "mg"),
    "metformin": ("6809", "metformin", 500.0, "mg"),
    "insulin": ("86009", "insulin lispro", 6.0, "[IU]"),
    "apixaban": ("1364430", "apixaban", 5.0, "mg"),
    "donepezil": ("135447", "donepezil", 5.0, "mg"),
    "atorvastatin": ("83367", "atorvastatin", 40.0, "mg"),
    "acetaminophen": ("161", "acetaminophen", 650.0, "mg"),
}
"""Name to RxNorm ingredient, display, dose and unit of an administration."""

OPIOIDS = ("morphine", "oxycodone")
ANTIBIOTICS = ("ceftriaxone", "vancomycin")

CONDITIONS = {
    "heart_failure": ("I50.9", "Heart failure, unspecified"),
    "copd": ("J44.9", "Chronic obstructive pulmonary disease, unspecified"),
    "ckd_3": ("N18.30", "Chronic kidney disease, stage 3 unspecified"),
    "ckd_4": ("N18.4", "Chronic kidney disease, stage 4"),
    "ckd_5": ("N18.5", "Chronic kidney disease, stage 5"),
    "cancer": ("C34.90", "Malignant neoplasm of unspecified part of bronchus or lung"),
    "dementia": ("F03.90", "Unspecified dementia without behavioral disturbance"),
    "atrial_fibrillation": ("I48.91", "Unspecified atrial fibrillation"),
    "diabetes": ("E11.9", "Type 2 diabetes mellitus without complications"),
    "hypertension": ("I10", "Essential (primary) hypertension"),
    "acute_heart_failure": ("I50.23", "Acute on chronic systolic heart failure"),
    "copd_exacerbation": ("J44.1", "COPD with acute exacerbation"),
    "pneumonia": ("J18.9", "Pneumonia, unspecified organism"),
    "sepsis": ("A41.9", "Sepsis, unspecified organism"),
    "kidney_injury": ("N17.9", "Acute kidney failure, unspecified"),
    "bleeding": ("K92.2", "Gastrointestinal hemorrhage, unspecified"),
    "anaemia": ("D64.9", "Anemia, unspecified"),
    "hyponatraemia": ("E87.1", "Hypo-osmolality and hyponatremia"),
    "delirium": ("F05", "Delirium due to known physiological condition"),
    "cancer_pain": ("G89.3", "Neoplasm related pain (acute) (chronic)"),
    "hip_arthritis": ("M16.11", "Unilateral primary osteoarthritis, right hip"),
    "gallstones": ("K80.20", "Calculus of gallbladder without cholecystitis"),
    "chest_pain": ("R07.9", "Chest pain, unspecified"),
    "abdominal_pain": ("R10.9", "Unspecified abdominal pain"),
    "dyspnoea": ("R06.02", "Shortness of breath"),
    "malnutrition": ("E46", "Unspecified protein-calorie malnutrition"),
}
"""Name to ICD-10-CM code and display."""

PROCEDURES = {
    "transfusion": ("116863004", "Transfusion of red blood cells"),
    "ventilation": ("40617009", "Artificial ventilation"),
    "hip_replacement": ("52734007", "Total replacement of hip"),
    "cholecystectomy": ("38102005", "Cholecystectomy"),
    "haemodialysis": ("302497006", "Hemodialysis"),
    "chest_xray": ("399208008", "Plain chest X-ray"),
    "echocardiography": ("40701008", "Echocardiography"),
    "colonoscopy": ("73761001", "Colonoscopy"),
}
"""Name to SNOMED CT code and display."""

RACES = (
    ("2106-3", "White", 0.62),
    ("2054-5", "Black or African American", 0.19),
    ("2028-9", "Asian", 0.06),
    ("1002-5", "American Indian or Alaska Native", 0.01),
    ("UNK", "Unknown", 0.12),
)
"""OMB category, display, share of the patients; race has no effect on any hazard."""
